from collections.abc import Mapping
from pathlib import Path

from lib.activelearning.pool import ScoreKind
from lib.activelearning.scores import ScoreCache, ScoreKey, ScoreRecords
from lib.activelearning.scoring_jobs import FileLocations, ScoringJobs, Studies, scores_in_order
from lib.jobs.job_runner import JobResult
from lib.storage.database import Database


def all_of(
    unlabelled: list[str],
    *,
    labelled: Mapping[str, str] | None = None,
    served: str | None = "m1",
    entropies: Mapping[str, float] | None = None,
    done: set[ScoreKey] | None = None,
) -> list[ScoreKey]:
    """Return all scores that are computed, in order."""
    studies = Studies(unlabelled=unlabelled, labelled=labelled or {})
    keys = list(scores_in_order(studies, served, entropies=entropies or {}))
    assert len(set(keys)) == len(keys), "computed twice"
    return [key for key in keys if key not in (done or ())]


def kind_and_image(keys: list[ScoreKey]) -> list[tuple[str, str]]:
    return [(key.kind.value, key.image_id) for key in keys]


def test_label_shapes_come_first_and_samples_last() -> None:
    assert kind_and_image(all_of(["b", "a"], labelled={"c": "sha"})) == [
        ("drawn", "c"),
        ("prediction", "a"),
        ("prediction", "b"),
        ("prediction", "c"),
        ("samples", "a"),
        ("samples", "b"),
    ]


def test_without_a_model_only_shapes_and_appearance_are_computed() -> None:
    assert kind_and_image(all_of(["a", "b"], labelled={"c": "sha"}, served=None)) == [
        ("drawn", "c"),
        ("appearance", "a"),
        ("appearance", "b"),
        ("appearance", "c"),
    ]


def test_a_new_model_scores_the_images_with_the_highest_entropies_first() -> None:
    entropies = {"a": 0.1, "b": 0.9, "c": 0.5}
    done = {
        ScoreKey(i, "m1", kind) for i in "abc" for kind in (ScoreKind.PREDICTION, ScoreKind.SAMPLES)
    }
    keys = all_of(["a", "b", "c"], served="m2", entropies=entropies, done=done)
    assert kind_and_image(keys)[:3] == [
        ("prediction", "b"),
        ("prediction", "c"),
        ("prediction", "a"),
    ]
    assert {key.model_version for key in keys} == {"m2"}


def test_an_unscored_image_is_among_the_first_but_not_before_those_with_the_highest_entropies() -> (
    None
):
    entropies = {f"old{n}": n / 10 for n in range(10)}
    keys = kind_and_image(all_of([*entropies, "new"], served="m2", entropies=entropies))
    place = keys.index(("prediction", "new"))
    assert 0 < place < 5


def test_the_shapes_of_a_corrected_label_are_computed() -> None:
    done = {
        ScoreKey("c", "sha1", ScoreKind.LABEL_SHAPES),
        ScoreKey("c", "m1", ScoreKind.PREDICTION),
    }
    keys = all_of([], labelled={"c": "sha2"}, done=done)
    assert keys == [ScoreKey("c", "sha2", ScoreKind.LABEL_SHAPES)]


def test_no_samples_are_computed_of_an_unreadable_image() -> None:
    studies = Studies(unlabelled=["a", "bad"], labelled={})
    done = {
        ScoreKey("a", "m1", ScoreKind.PREDICTION),
        ScoreKey("bad", "m1", ScoreKind.PREDICTION),
        ScoreKey("a", "m1", ScoreKind.SAMPLES),
    }
    assert set(scores_in_order(studies, "m1", unreadable={"bad"})) == done


class Scoring:
    """Scoring jobs over a database, of images that exist by name only; each job is done at once."""

    def __init__(self, folder: Path) -> None:
        self.records = ScoreRecords(Database(folder / "workflow.sqlite"))
        self.studies = Studies(unlabelled=("a", "b"), labelled={})
        self.served = "m1"
        place = Path("x").joinpath
        self.jobs = ScoringJobs(
            self.records,
            ScoreCache(self.records),
            studies=lambda: self.studies,
            served=lambda: self.served,
            files=FileLocations(image=place, label=place, model=place),
        )

    def next(self) -> str:
        job = self.jobs()
        if job is None:
            return ""
        job.store(JobResult(values={}, error="not computed in this test"))
        return job.description


def test_new_images_and_labels_are_scored_next_and_nothing_twice(tmp_path: Path) -> None:
    scoring = Scoring(tmp_path)
    assert scoring.next() == "a, prediction"
    job = scoring.jobs()
    assert job is not None
    assert job.description == "b, prediction"
    scoring.studies = Studies(unlabelled=("b", "new"), labelled={"a": "sha1"})
    assert [scoring.next() for _ in range(6)] == [
        "a, drawn", "new, prediction", "new, samples", "b, prediction", "b, samples", "",
    ]  # fmt: skip
    scoring.studies = Studies(unlabelled=("a", "b", "new"), labelled={})
    assert [scoring.next() for _ in range(2)] == ["a, samples", ""]
    scoring.served = "m2"
    assert scoring.next() == "a, prediction"
