"""A candidate before the referee: both models on the same cases, at this moment, and what follows."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lib.config import RetrainConfig
from lib.errors import CheckpointError
from lib.models.model_history import ModelHistory
from lib.models.promotion import Promoter
from lib.models.registry import Model, Registry, load_model
from lib.retrain.promotion_rule import CaseDice, PromotionDecision, decide_promotion
from lib.training.cases import Case
from lib.training.validate import validate

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateEvaluation:
    """What the decision about a candidate needs.

    Attributes:
        registry: Holds the weights.
        models: Remembers the decision.
        promoter: Carries it out.
        config: The rules.
        device: Where the networks run.
        before_each: Called before each case is contoured.
    """

    registry: Registry
    models: ModelHistory
    promoter: Promoter
    config: RetrainConfig
    device: str
    before_each: Callable[[], object] | None = None

    def evaluate(self, version: str, referee: Sequence[Case]) -> tuple[bool, str]:
        """Decide about a candidate that is in the registry and in the database, and act on it.

        A candidate that was decided about before a crash is not judged again.

        Returns:
            Whether it serves now, and why.
        """
        known = self.models.get(version)
        if known is not None and known.decision != "waiting":
            return known.decision == "promoted", known.reason
        candidate = load_model(self.registry.folder / f"{version}.safetensors", self.device)
        served, refusal = self._served(candidate)
        if refusal:
            ruling = PromotionDecision(
                is_promoted=False, reason=refusal, candidate_dsc=None, organs={}
            )
            return self._record(version, ruling, {}, None)
        new = self._dice(candidate, referee)
        old = self._dice(served, referee) if served is not None else None
        ruling = decide_promotion(
            new,
            old,
            self.config,
            has_more_labels=self._has_more_labels(version, served),
            is_first=self.registry.published_version() is None,
        )
        return self._record(version, ruling, new, old)

    def _served(self, candidate: Model) -> tuple[Model | None, str | None]:
        """Return the model that serves, if any, or what forbids a comparison."""
        path = self.registry.served_path()
        if path is None:
            return None, None
        try:
            served = load_model(path, self.device)
        except CheckpointError as error:
            logger.warning(
                "the served model does not load, the candidate is judged alone: %s", error
            )
            return None, None
        if served.version == candidate.version:
            return served, "its weights are those of the served model"
        if served.recipe.organ_set != candidate.recipe.organ_set:
            return served, (
                f"it contours the organ set {candidate.recipe.organ_set!r}, the served model "
                f"{served.recipe.organ_set!r}: promote it by hand if that is meant"
            )
        return served, None

    def _dice(self, model: Model, referee: Sequence[Case]) -> CaseDice:
        return validate(model, referee, device=self.device, before_each=self.before_each).per_case

    def _has_more_labels(self, version: str, served: Model | None) -> bool:
        candidate = self.models.get(version)
        old = self.models.get(served.version) if served is not None else None
        return (candidate.labels_seen if candidate else 0) > (old.labels_seen if old else 0)

    def _record(
        self, version: str, ruling: PromotionDecision, new: CaseDice, old: CaseDice | None
    ) -> tuple[bool, str]:
        report: Mapping[str, Any] = {
            **asdict(ruling),
            "cases": {case: {"candidate": dict(organs)} for case, organs in new.items()},
            "rules": {
                "promotion_margin": self.config.promotion_margin,
                "promotion_confidence": self.config.promotion_confidence,
                "max_organ_drop": self.config.max_organ_drop,
                "min_first_dsc": self.config.min_first_dsc,
            },
        }
        for case, organs in (old or {}).items():
            report["cases"].setdefault(case, {})["served"] = dict(organs)
        metrics = {organ: found["candidate"] for organ, found in ruling.organs.items()}
        decision = "promoted" if ruling.is_promoted else "rejected"
        self.models.decide(
            version, decision=decision, reason=ruling.reason, metrics=metrics, report=dict(report)
        )
        if ruling.is_promoted:
            self.promoter.promote(version, reason=ruling.reason, by="referee")
        logger.info("%s is %s: %s", version, decision, ruling.reason)
        return ruling.is_promoted, ruling.reason
