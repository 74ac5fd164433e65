"""Evaluation of a candidate model against the active model, and the promotion that may follow."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lib.config import RetrainConfig
from lib.errors import CheckpointError
from lib.labels.history import LabelHistory
from lib.models.model_cards import candidate_from_files, write_decision
from lib.models.model_history import ModelHistory
from lib.models.promotion import Promoter
from lib.models.registry import Model, Registry, load_model
from lib.retrain.promotion_rule import (
    CaseDice,
    PromotionDecision,
    decide_promotion,
    is_clearly_worse,
)
from lib.retrain.settings import Settings
from lib.storage.database import FILE, Database, state_folder
from lib.storage.leftovers import scratch_folder
from lib.training.case_scores import CaseScores
from lib.training.cases import Case
from lib.training.validate import validate

logger = logging.getLogger(__name__)

THRESHOLDS = ("promotion_margin", "promotion_confidence", "max_organ_drop", "min_first_dsc")
"""Settings of the promotion rule, which are recorded with each decision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateEvaluation:
    """Evaluates candidate models, records the decisions, and promotes."""

    registry: Registry
    """Model versions."""
    models: ModelHistory
    """Model history, in which the decision is recorded."""
    promoter: Promoter
    """Changes the active model."""
    config: RetrainConfig
    """Thresholds of the promotion rule."""
    device: str
    """Device of the networks."""
    by: str = "referee"
    """Recorded as the author of the decision."""
    before_each: Callable[[], object] | None = None
    """Called before each case is contoured."""
    scores: CaseScores | None = None
    """Stored scores of the models; a model is not evaluated twice on the same case."""

    def evaluate(self, version: str, evaluation_cases: Sequence[Case]) -> tuple[bool, str]:
        """Decide about a candidate model that is in the registry and in the model history, and act on it.

        Returns:
            Whether it is promoted, and the reason.
        """
        candidate = load_model(self.registry.folder / f"{version}.safetensors", self.device)
        active, refusal = self._active_model(candidate)
        if refusal:
            decision = PromotionDecision(is_promoted=False, reason=refusal)
            return self._record(version, decision, {}, None)
        old = self._dice(active, evaluation_cases) if active is not None else None
        new = self._dice(candidate, evaluation_cases, old)
        decision = decide_promotion(
            new,
            old,
            self.config,
            has_more_labels=self._has_more_labels(version, active),
            is_first=self.registry.published_version() is None,
        )
        if candidate.card.get("validation", {}).get("chose_the_weights"):
            note = "its weights were chosen among several by these cases, which favours it"
            decision = replace(decision, reason=f"{decision.reason}; {note}")
        if old is not None and len(new) < len(old):
            note = f"{len(new)} of {len(old)} evaluation cases were enough"
            decision = replace(decision, reason=f"{decision.reason}; {note}")
            old = {case: organs for case, organs in old.items() if case in new}
        return self._record(version, decision, new, old)

    def _active_model(self, candidate: Model) -> tuple[Model | None, str | None]:
        """Return the active model, if any, and a reason to reject the candidate model without evaluation."""
        path = self.registry.served_path()
        if path is None:
            return None, None
        try:
            active = load_model(path, self.device)
        except CheckpointError as error:
            logger.warning(
                "the active model does not load, the candidate model is evaluated alone: %s", error
            )
            return None, None
        if active.version == candidate.version:
            return active, "its weights are those of the active model"
        if active.recipe.organ_set != candidate.recipe.organ_set:
            return active, (
                f"it contours the organ set {candidate.recipe.organ_set!r}, the active model "
                f"{active.recipe.organ_set!r}: promote it by hand if that is intended"
            )
        return active, None

    def _dice(
        self, model: Model, cases: Sequence[Case], served: CaseDice | None = None
    ) -> CaseDice:
        """Return the DSC of a model; with `served`, that of a candidate, as far as its rejection needs it."""

        def is_decided(so_far: CaseDice) -> bool:
            return served is not None and is_clearly_worse(
                so_far, served, self.config, cases=len(served)
            )

        return validate(
            model,
            cases,
            device=self.device,
            before_each=self.before_each,
            scores=self.scores,
            is_decided=is_decided,
        ).per_case

    def _has_more_labels(self, version: str, active: Model | None) -> bool:
        candidate = self.models.get(version)
        old = self.models.get(active.version) if active is not None else None
        return (candidate.labels_seen if candidate else 0) > (old.labels_seen if old else 0)

    def _record(
        self, version: str, decision: PromotionDecision, new: CaseDice, old: CaseDice | None
    ) -> tuple[bool, str]:
        report: Mapping[str, Any] = {
            **asdict(decision),
            "cases": {case: {"candidate": dict(organs)} for case, organs in new.items()},
            "rules": {name: getattr(self.config, name) for name in THRESHOLDS},
        }
        for case, organs in (old or {}).items():
            report["cases"].setdefault(case, {})["served"] = dict(organs)
        outcome = "promoted" if decision.is_promoted else "rejected"
        self.models.decide(
            version,
            decision=outcome,
            reason=decision.reason,
            by=self.by,
            metrics={organ: values["candidate"] for organ, values in decision.organs.items()},
            report=dict(report),
        )
        if decision.is_promoted:
            self.promoter.promote(version, reason=decision.reason, by=self.by)
        logger.info("%s is %s: %s", version, outcome, decision.reason)
        return decision.is_promoted, decision.reason


def publish_candidate(
    folder: Path,
    version: str,
    evaluation_cases: Sequence[Case],
    *,
    studies: Path,
    starter: Path | None,
    by: str,
    device: str = "cpu",
) -> tuple[bool, str]:
    """Promote a model that was trained outside a server, by the same rule and with the same record.

    The workflow database of `studies` provides the settings and records the decision, if it belongs to the
    model folder. Without one, the settings are the defaults, the history is read from the cards of the
    folder, and the decision is written to the model's card. `served.json` lists promotions in both cases.

    Args:
        folder: Model folder, which contains the version.
        version: The candidate model.
        evaluation_cases: Cases that the candidate model was not trained on.
        studies: Studies folder.
        starter: Folder of the starter weights, which are active until a first model is promoted.
        by: Recorded as the author of the decision.
        device: Device of the networks.

    Returns:
        Whether it is promoted, and the reason.
    """
    recipe = load_model(folder / f"{version}.safetensors").recipe
    registry = Registry(folder, starter=starter, organ_set=recipe.organ_set)
    path = state_folder(str(studies), folder) / FILE
    if path.is_file():
        with closing(Database(path)) as database:
            if _belongs_to(ModelHistory(database), registry):
                return _publish(registry, version, evaluation_cases, database, by=by, device=device)
    with (
        scratch_folder() as scratch,
        closing(Database(scratch / FILE)) as database,
    ):
        result = _publish(registry, version, evaluation_cases, database, by=by, device=device)
        row = ModelHistory(database).get(version)
    if row is not None:
        write_decision(registry, row, by=by)
    return result


def _publish(
    registry: Registry,
    version: str,
    evaluation_cases: Sequence[Case],
    database: Database,
    *,
    by: str,
    device: str,
) -> tuple[bool, str]:
    models = ModelHistory(database)
    promoter = Promoter(registry, models)
    promoter.record_external_changes()
    if registry.published_version() == version:
        return True, "it is the active model already"
    models.record(candidate_from_files(registry, version))
    config = Settings(database, RetrainConfig()).get()
    if not config.doubted_may_judge:
        labels = LabelHistory(database, database.path.parent).current()
        with_warnings = {label.image_id for label in labels if label.doubts}
        evaluation_cases = [case for case in evaluation_cases if case.image_id not in with_warnings]
    evaluation = CandidateEvaluation(
        registry=registry, models=models, promoter=promoter, config=config, device=device, by=by
    )
    return evaluation.evaluate(version, evaluation_cases)


def _belongs_to(models: ModelHistory, registry: Registry) -> bool:
    """Return whether a model history is that of a model folder: all its models except the starter are in it."""
    versions = {row.version for row in models.all() if row.decision != "starter"}
    return versions <= set(registry.versions())
