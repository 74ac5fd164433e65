"""The timeline of a rehearsal as a picture: labels, trainings, and how good what served was."""

from collections.abc import Mapping, Sequence
from typing import Any

from lib.reports.figures import png, styled_figure

_ENDED = ("promoted", "rejected", "failed", "stopped")
_COLOURS = {"promoted": "tab:green", "rejected": "tab:red"}


def timeline_chart(
    events: Sequence[Mapping[str, Any]], versions: Sequence[Mapping[str, Any]]
) -> bytes:
    """Return a PNG of a rehearsal.

    Args:
        events: What happened when (`apps.support.simulated_clients.Timeline`).
        versions: What served, since when, and its mean DSC on the cases that the server never saw.
    """
    end = max((event["s"] for event in events), default=0.0) / 60
    with styled_figure(7.4, 3.6) as figure:
        axes = figure.subplots()
        for begins, ends, state in trainings(events):
            axes.axvspan(begins / 60, ends / 60, color=_COLOURS.get(state, "tab:gray"), alpha=0.15)
            middle = (begins + ends) / 120
            axes.text(middle, 0.04, state, ha="center", transform=axes.get_xaxis_transform())
        labels = [event["s"] / 60 for event in events if event["kind"] == "label"]
        axes.plot(labels, [0.0] * len(labels), "k|", markersize=12, label="label submitted")
        times = [version["since_s"] / 60 for version in versions]
        scores = [version["mean_dsc"] for version in versions]
        if times:
            axes.step([*times, end], [*scores, scores[-1]], where="post", label="what served")
            axes.plot(times, scores, "o", color="tab:blue")
        axes.set(xlabel="Minutes", ylabel="Mean DSC, cases never submitted", ylim=(0, 1))
        axes.set_xlim(0, max(end, 1.0))
        axes.legend(loc="upper left")
        return png(figure)


def trainings(events: Sequence[Mapping[str, Any]]) -> list[tuple[float, float, str]]:
    """Return when each training began and ended, in seconds, and how."""
    began: dict[int, float] = {}
    found = []
    for event in events:
        if event["kind"] != "training":
            continue
        began.setdefault(event["id"], event["s"])
        if event["state"] in _ENDED:
            found.append((began[event["id"]], event["s"], event["state"]))
    return found
