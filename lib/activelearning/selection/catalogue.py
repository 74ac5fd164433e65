"""Catalogue of the query strategies by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lib.activelearning.pool import Choice, Pool, ScoreKind
from lib.activelearning.selection.baselines import first, random, random_foreground
from lib.activelearning.selection.failure import failure_first
from lib.activelearning.selection.representative import coldstart, suggestive
from lib.activelearning.selection.uncertainty import claspe, entropy, structure_qc

MOST_COMPARED = 1000
"""Number of images for strategies that compare images with each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One query strategy."""

    description: str
    """One line for the clients."""
    paper: str = ""
    """Source; empty for baselines."""
    choose: Callable[[Pool], Choice | None]
    """Returns the next image, or None if there is no candidate. The same pool and seed give the same choice,
    whatever the order of the candidates. Images without the needed scores come last; if no image has them, one
    is drawn at random."""
    needs: tuple[ScoreKind, ...] = ()
    """Kinds of scores that the strategy ranks by."""
    most_images: int | None = None
    """Largest number of candidates, and of labelled images, that the server lets it compare: of more, a random
    sample. None if it is fast with any number of images."""

    @property
    def name(self) -> str:
        """Name in `POST /activelearning/<name>`: the name of the function."""
        return self.choose.__name__


_ALL = (
    Method(description="First by name", choose=first),
    Method(description="Uniformly at random", choose=random),
    Method(
        description="Random; in two of three draws weighted by the volume of a random organ",
        paper="Lueth et al., nnActive, TMLR 2025 (arXiv 2511.19183)",
        choose=random_foreground,
        needs=(ScoreKind.PREDICTION,),
    ),
    Method(
        description="Highest mean predictive entropy",
        paper="Settles, Active Learning, Morgan & Claypool 2012",
        choose=entropy,
        needs=(ScoreKind.PREDICTION,),
    ),
    Method(
        description="High entropy of one random organ, with noise that decreases with the number of labels",
        paper="Lueth, Traub et al., Finally Outshining the Random Baseline, TMLR 2026 (arXiv 2601.13677)",
        choose=claspe,
        needs=(ScoreKind.PREDICTION,),
    ),
    Method(
        description="Largest disagreement between repeated predictions",
        paper="Roy et al., Bayesian QuickNAT, NeuroImage 195, 2019",
        choose=structure_qc,
        needs=(ScoreKind.PREDICTION, ScoreKind.SAMPLES),
    ),
    Method(
        description="Uncertain, and representative of many cases that are unlike the contoured ones",
        paper="Yang et al., Suggestive Annotation, MICCAI 2017",
        choose=suggestive,
        needs=(ScoreKind.PREDICTION,),
        most_images=MOST_COMPARED,
    ),
    Method(
        description="Typical image of the largest cluster without contours; needs no model",
        paper="Hacohen et al., Active Learning on a Budget, ICML 2022",
        choose=coldstart,
        needs=(ScoreKind.APPEARANCE,),
        most_images=MOST_COMPARED,
    ),
    Method(
        description="Most implausible prediction: size, position, pieces, missing organs, swapped sides",
        paper="Hui et al., Quality assurance tool for organ at risk delineation, Med Phys 45, 2018",
        choose=failure_first,
        needs=(ScoreKind.PREDICTION, ScoreKind.LABEL_SHAPES),
        most_images=MOST_COMPARED,
    ),
)
METHODS: Mapping[str, Method] = MappingProxyType({method.name: method for method in _ALL})
"""Name -> strategy, the simplest first."""


def default_method(has_model: bool) -> str:  # noqa: FBT001 - the only argument
    """Return the name of the strategy for requests that name none."""
    return "claspe" if has_model else "coldstart"
