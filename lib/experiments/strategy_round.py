"""One round: ask by the last model, reveal, train, judge; what a kill interrupts is done again alike."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib.activelearning.pool import Choice
from lib.activelearning.score_records import Kind
from lib.activelearning.selection.catalogue import METHODS
from lib.errors import CheckpointError, TrainingError
from lib.evaluation.metrics import organ_dice
from lib.experiments import pool_scoring
from lib.experiments.batch_selection import picked
from lib.experiments.label_cost import cost_of, total
from lib.experiments.prepared_volumes import Volumes
from lib.experiments.protocol import Protocol, derived_seed, first_draw
from lib.experiments.round_records import FOLDER as RECORDS
from lib.experiments.round_records import START, Round, RoundKey, places, read_round, write_round
from lib.inference.preprocessing import Pipeline
from lib.inference.single_pass import StageTimer, contour_prepared
from lib.models.registry import Model, load_model, save_model
from lib.training.cases import Case
from lib.training.run import RunCallbacks, RunOptions, train

WORK = "work"
CACHE = "cache"
RUN = "run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """A protocol with its files; small, and the same in every process.

    Attributes:
        protocol: What decides the numbers.
        cases: Image id -> case, of pool and test.
        output: Gets `rounds`, and `work` and `cache`, which can be removed when it is over.
    """

    protocol: Protocol
    cases: Mapping[str, Case]
    output: Path

    @property
    def volumes(self) -> Volumes:
        """The cases, prepared."""
        digests = {**self.protocol.pool, **self.protocol.test}
        return Volumes(self.cases, digests, Pipeline(self.protocol.recipe), self.output / CACHE)

    def folder(self, place: RoundKey) -> Path:
        """Return where a round's checkpoint, model and scores lie as long as they are needed."""
        return self.output / WORK / place.name


def play(simulation: Simulation, place: RoundKey) -> Round:
    """Return what a round came to; computed, and its file written, if it is not over.

    Raises:
        OrganNetError: If it cannot be computed.
    """
    if (over := read_round(simulation.output, place)) is not None:
        return over
    protocol, clock = simulation.protocol, StageTimer()
    earlier = _earlier(simulation, place)
    model = None
    if earlier is not None and (_kinds(protocol, place) or protocol.start == "previous"):
        model = _kept_model(simulation, earlier.place)
    picks = _asked(simulation, place, earlier, model, clock)
    labelled = (*(earlier.labelled if earlier else ()), *(pick.image_id for pick in picks))
    initial = model if protocol.start == "previous" else None
    trained = _trained(simulation, place, labelled, initial)
    clock.lap("train")
    per_case = judged(trained, simulation.volumes, protocol.test, device=protocol.device)
    clock.lap("test")
    if earlier is None:
        # Every strategy's first question is asked of this model: it is scored once for all of them.
        wanted = pool_scoring.wanted_by(
            _kinds(protocol, place), pool=protocol.pool, labelled=labelled
        )
        found = pool_scoring.scored(
            simulation.volumes, wanted, trained, device=protocol.device, known={}
        )
        pool_scoring.write_scores(simulation.folder(place), found)
        clock.lap("score")
    labels = (simulation.volumes.read(image_id).label for image_id in labelled)
    found_round = Round(
        place=place,
        picks=tuple(picks),
        labelled=labelled,
        cost=total(cost_of(label.array, label.grid) for label in labels),
        per_case=per_case,
        seconds=clock.seconds,
        model_version=trained.version,
        initial_version=initial.version if initial else None,
        steps=int(trained.card["training"]["steps"]),
    )
    write_round(simulation.output, found_round)
    return found_round


def judged(
    model: Model, volumes: Volumes, test: Collection[str], *, device: str
) -> dict[str, dict[str, float]]:
    """Return the DSC by test case and organ, as `lib.training.validate.validate` does.

    Organs that a reference does not contain are unknown, and left out.
    """
    found = {}
    for image_id in sorted(test):
        ready = volumes.read(image_id)
        drawn = contour_prepared(ready.prepared, model, device=device).label
        found[image_id] = organ_dice(ready.label.array, drawn.array, model.recipe.labels)
    return found


def needed_folders(protocol: Protocol, over: Collection[RoundKey]) -> set[str]:
    """Return the names of the folders in `WORK` that a round to come goes on from, or is at work in."""
    needed = set()
    for place in places(protocol):
        if place in over:
            continue
        needed.add(place.name)
        if (before := place.before()) is not None:
            needed.add(before.name)
    return needed


def _earlier(simulation: Simulation, place: RoundKey) -> Round | None:
    """Return the round that this one follows; None for the start."""
    before = place.before()
    if before is None:
        return None
    earlier = read_round(simulation.output, before)
    if earlier is None:
        raise TrainingError(f"{place.name}: {before.name}, which it follows, is not over")
    return earlier


def _kinds(protocol: Protocol, place: RoundKey) -> set[Kind]:
    """Return what has to be computed before this round's question, or after the start for everybody's first."""
    names = protocol.strategies if place.strategy == START else (place.strategy,)
    return {kind for name in names for kind in METHODS[name].needs}


def _asked(
    simulation: Simulation,
    place: RoundKey,
    earlier: Round | None,
    model: Model | None,
    clock: StageTimer,
) -> list[Choice]:
    """Return the labels that are asked for in this round, and why."""
    protocol = simulation.protocol
    if earlier is None:
        drawn = first_draw(protocol.pool, protocol.budgets[0], seed=place.seed)
        return [
            Choice(image_id=image_id, of=len(protocol.pool), why="drawn for all strategies alike")
            for image_id in drawn
        ]
    wanted = pool_scoring.wanted_by(
        _kinds(protocol, place), pool=protocol.pool, labelled=earlier.labelled
    )
    found = pool_scoring.scored(
        simulation.volumes,
        wanted,
        model,
        device=protocol.device,
        known=pool_scoring.read_scores(simulation.folder(earlier.place)),
    )
    clock.lap("score")
    pool = pool_scoring.pool_of(
        found, pool=protocol.pool, labelled=earlier.labelled, model_version=earlier.model_version
    )
    count = protocol.budgets[place.number] - len(earlier.labelled)
    choices = picked(
        METHODS[place.strategy],
        pool,
        count,
        seed_of=lambda number: derived_seed(place.seed, place.number, number),
    )
    clock.lap("choose")
    return choices


def _trained(
    simulation: Simulation, place: RoundKey, labelled: Sequence[str], initial: Model | None
) -> Model:
    """Return the model that is learned from `labelled`, kept in the round's folder."""
    protocol, folder = simulation.protocol, simulation.folder(place)
    trained = train(
        protocol.recipe,
        [simulation.cases[image_id] for image_id in sorted(labelled)],
        (),
        run_dir=folder / RUN,
        cache_dir=simulation.output / CACHE,
        # The same for all strategies: what differs between them is the labels alone.
        options=RunOptions(seed=derived_seed(place.seed, place.number), device=protocol.device),
        initial=initial,
        callbacks=RunCallbacks(),
    )
    version = save_model(folder, trained.weights, protocol.recipe, trained.card)
    return load_model(folder / f"{version}.safetensors", protocol.device)


def _kept_model(simulation: Simulation, place: RoundKey) -> Model:
    """Return the model of a round that is over."""
    folder = simulation.folder(place)
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise CheckpointError(
            f"{folder}: one model is expected there, {len(files)} are; remove "
            f"{place.name}.json and what follows it from {simulation.output / RECORDS}, and they are "
            "computed again"
        )
    return load_model(files[0], simulation.protocol.device)
