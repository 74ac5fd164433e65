from collections.abc import Mapping

from lib.activelearning.score_records import Kind
from lib.activelearning.scoring_queue import Backlog, ScoringWork, next_work


def all_of(
    unlabelled: list[str],
    *,
    labelled: Mapping[str, str] | None = None,
    served: str | None = "m1",
    interest: Mapping[str, float] | None = None,
    known: set[tuple[str, str, Kind]] | None = None,
) -> list[ScoringWork]:
    """Return everything that is computed, in order, until nothing is left."""
    done = set(known or ())
    found: list[ScoringWork] = []
    while True:
        work = next_work(
            Backlog(
                unlabelled=unlabelled,
                labelled=labelled or {},
                served=served,
                known=done,
                interest=interest or {},
            )
        )
        if work is None:
            return found
        key = (work.image_id, work.model_version, work.kind)
        assert key not in done, "computed twice"
        done.add(key)
        found.append(work)


def told(works: list[ScoringWork]) -> list[tuple[str, str]]:
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
    interest = {"a": 0.1, "b": 0.9, "c": 0.5}
    known = {(i, "m1", kind) for i in "abc" for kind in (Kind.PREDICTION, Kind.SAMPLES)}
    works = all_of(["a", "b", "c"], served="m2", interest=interest, known=known)
    assert told(works)[:3] == [("prediction", "b"), ("prediction", "c"), ("prediction", "a")]
    assert {work.model_version for work in works} == {"m2"}


def test_an_image_that_no_model_has_seen_is_among_the_first_but_not_before_the_worst() -> None:
    interest = {f"old{n}": n / 10 for n in range(10)}
    works = told(all_of([*interest, "new"], served="m2", interest=interest))
    place = works.index(("prediction", "new"))
    assert 0 < place < 5


def test_a_corrected_contour_is_looked_at_again() -> None:
    known = {("c", "sha1", Kind.DRAWN), ("c", "m1", Kind.PREDICTION)}
    works = all_of([], labelled={"c": "sha2"}, known=known)
    assert works == [ScoringWork(kind=Kind.DRAWN, image_id="c", model_version="sha2")]


def test_samples_are_not_tried_of_what_one_pass_could_not_be_had_of() -> None:
    backlog = Backlog(
        unlabelled=["a", "bad"],
        labelled={},
        served="m1",
        known={
            ("a", "m1", Kind.PREDICTION),
            ("bad", "m1", Kind.PREDICTION),
            ("a", "m1", Kind.SAMPLES),
        },
        unreadable={"bad"},
    )
    assert next_work(backlog) is None
