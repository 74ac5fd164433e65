"""Every query strategy by its name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lib.activelearning.pool import Choice, Pool, ScoreKind
from lib.activelearning.selection.baselines import first, random, random_foreground
from lib.activelearning.selection.failure import failure_first
from lib.activelearning.selection.representative import coldstart, suggestive
from lib.activelearning.selection.uncertainty import claspe, entropy, structure_qc


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One query strategy.

    Attributes:
        name: In `POST /activelearning/<name>`.
        description: One line that clients show.
        paper: Where it comes from; empty where it needs no source.
        choose: Returns the next image, None where there is no candidate. The same pool and seed give the same
            choice, whatever the order of the candidates; those that it knows too little of come last, and where
            it knows too little of all it draws one at random.
        needs: What has to be computed of the images before it can rank them.
    """

    name: str
    description: str
    paper: str = ""
    choose: Callable[[Pool], Choice | None]
    needs: tuple[ScoreKind, ...] = ()


_ALL = (
    Method(name="first", description="The first by name", choose=first),
    Method(name="random", description="Any, each equally likely", choose=random),
    Method(
        name="random_foreground",
        description="At random, two times of three by how much of a randomly drawn organ it shows",
        paper="Lueth et al., nnActive, TMLR 2025 (arXiv 2511.19183)",
        choose=random_foreground,
        needs=(ScoreKind.PREDICTION,),
    ),
    Method(
        name="entropy",
        description="The model is least sure of it as a whole",
        paper="Settles, Active Learning, Morgan & Claypool 2012",
        choose=entropy,
        needs=(ScoreKind.PREDICTION,),
    ),
    Method(
        name="claspe",
        description="The model is unsure of it, for one organ at a time, with chance at the beginning",
        paper="Lueth, Traub et al., Finally Outshining the Random Baseline, TMLR 2026 (arXiv 2601.13677)",
        choose=claspe,
        needs=(ScoreKind.PREDICTION,),
    ),
    Method(
        name="structure_qc",
        description="Contoured several times by the model, it comes out most differently",
        paper="Roy et al., Bayesian QuickNAT, NeuroImage 195, 2019",
        choose=structure_qc,
        needs=(ScoreKind.PREDICTION, ScoreKind.SAMPLES),
    ),
    Method(
        name="suggestive",
        description="The model is unsure of it, and it stands for many cases unlike those contoured",
        paper="Yang et al., Suggestive Annotation, MICCAI 2017",
        choose=suggestive,
        needs=(ScoreKind.PREDICTION,),
    ),
    Method(
        name="coldstart",
        description="Typical of scans that look alike, none of them contoured yet; needs no model",
        paper="Hacohen et al., Active Learning on a Budget, ICML 2022",
        choose=coldstart,
        needs=(ScoreKind.APPEARANCE,),
    ),
    Method(
        name="failure_first",
        description="Most likely contoured wrongly: size, place, pieces, missing organs, swapped sides",
        paper="Hui et al., Quality assurance tool for organ at risk delineation, Med Phys 45, 2018",
        choose=failure_first,
        needs=(ScoreKind.PREDICTION, ScoreKind.LABEL_SHAPES),
    ),
)
METHODS: Mapping[str, Method] = MappingProxyType({method.name: method for method in _ALL})
"""Name -> strategy, the simplest first."""


def default_method(has_model: bool) -> str:  # noqa: FBT001 - the only argument
    """Return the name of the strategy to use where nobody chose one."""
    return "claspe" if has_model else "coldstart"
