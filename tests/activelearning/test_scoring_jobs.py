from collections.abc import Mapping

from lib.activelearning.pool import ScoreKind
from lib.activelearning.scoring_jobs import ScoringBacklog, ScoringTask, next_task


def all_of(
    unlabelled: list[str],
    *,
    labelled: Mapping[str, str] | None = None,
    served: str | None = "m1",
    entropies: Mapping[str, float] | None = None,
    done: set[tuple[str, str, ScoreKind]] | None = None,
) -> list[ScoringTask]:
    """Return everything that is computed, in order, until nothing is left."""
    so_far = set(done or ())
    tasks: list[ScoringTask] = []
    while True:
        work = next_task(
            ScoringBacklog(
                unlabelled=unlabelled,
                labelled=labelled or {},
                served=served,
                done=so_far,
                entropies=entropies or {},
            )
        )
        if work is None:
            return tasks
        key = (work.image_id, work.model_version, work.kind)
        assert key not in so_far, "computed twice"
        so_far.add(key)
        tasks.append(work)


def told(works: list[ScoringTask]) -> list[tuple[str, str]]:
    return [(work.kind.value, work.image_id) for work in works]


def test_the_cheap_comes_before_the_dear_and_people_s_contours_before_both() -> None:
    assert told(all_of(["b", "a"], labelled={"c": "sha"})) == [
        ("drawn", "c"),
        ("prediction", "a"),
        ("prediction", "b"),
        ("prediction", "c"),
        ("samples", "a"),
        ("samples", "b"),
    ]


def test_without_a_model_only_what_needs_none_is_computed() -> None:
    assert told(all_of(["a", "b"], labelled={"c": "sha"}, served=None)) == [
        ("drawn", "c"),
        ("appearance", "a"),
        ("appearance", "b"),
        ("appearance", "c"),
    ]


def test_a_new_model_looks_at_the_top_of_the_old_list_first() -> None:
    entropies = {"a": 0.1, "b": 0.9, "c": 0.5}
    done = {(i, "m1", kind) for i in "abc" for kind in (ScoreKind.PREDICTION, ScoreKind.SAMPLES)}
    works = all_of(["a", "b", "c"], served="m2", entropies=entropies, done=done)
    assert told(works)[:3] == [("prediction", "b"), ("prediction", "c"), ("prediction", "a")]
    assert {work.model_version for work in works} == {"m2"}


def test_an_image_that_no_model_has_seen_is_among_the_first_but_not_before_the_worst() -> None:
    entropies = {f"old{n}": n / 10 for n in range(10)}
    works = told(all_of([*entropies, "new"], served="m2", entropies=entropies))
    place = works.index(("prediction", "new"))
    assert 0 < place < 5


def test_a_corrected_contour_is_looked_at_again() -> None:
    done = {("c", "sha1", ScoreKind.LABEL_SHAPES), ("c", "m1", ScoreKind.PREDICTION)}
    works = all_of([], labelled={"c": "sha2"}, done=done)
    assert works == [ScoringTask(kind=ScoreKind.LABEL_SHAPES, image_id="c", model_version="sha2")]


def test_samples_are_not_tried_of_what_one_pass_could_not_be_had_of() -> None:
    backlog = ScoringBacklog(
        unlabelled=["a", "bad"],
        labelled={},
        served="m1",
        done={
            ("a", "m1", ScoreKind.PREDICTION),
            ("bad", "m1", ScoreKind.PREDICTION),
            ("a", "m1", ScoreKind.SAMPLES),
        },
        unreadable={"bad"},
    )
    assert next_task(backlog) is None
