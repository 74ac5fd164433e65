"""Whether a new model may serve."""

from collections.abc import Sequence

from lib.errors import CheckpointError
from lib.models.registry import Registry, load_model
from lib.training.cases import Case
from lib.training.validate import validate


def publish_if_not_worse(
    registry: Registry, version: str, held_out: Sequence[Case], *, device: str = "cpu"
) -> tuple[bool, str]:
    """Publish `version` unless the served model does better on cases that neither was trained on.

    Both are evaluated on the same cases at this moment. Where nothing serves, the candidate does. A model
    whose weights were chosen by its validation cases (`schedule.patience`) has an advantage on them, however
    small; the reason says so.

    Returns:
        Whether it was published, and why.
    """
    reason, is_better = _verdict(registry, version, held_out, device)
    if is_better:
        registry.publish(version, reason=reason)
    return is_better, reason


def _verdict(
    registry: Registry, version: str, held_out: Sequence[Case], device: str
) -> tuple[str, bool]:
    served = registry.served_path()
    if served is None:
        return "the first model", True
    candidate = load_model(registry.folder / f"{version}.safetensors", device)
    try:
        incumbent = load_model(served, device)
    except CheckpointError as error:
        return f"the served model does not load: {error}", True
    if incumbent.recipe.organ_set != candidate.recipe.organ_set:
        return (
            f"it contours the organ set {candidate.recipe.organ_set!r}, the served model "
            f"{incumbent.recipe.organ_set!r}: publish it by hand if that is meant"
        ), False
    new = validate(candidate, held_out, device=device).mean
    old = validate(incumbent, held_out, device=device).mean
    if new is None or old is None:
        return "no held-out case is labelled, so nothing shows that it is not worse", False
    reason = f"mean DSC {new:.3f} against {old:.3f} on {len(held_out)} held-out cases"
    if candidate.card.get("validation", {}).get("chose_the_weights"):
        reason += ", by which the new weights were chosen among several"
    return reason, new >= old
