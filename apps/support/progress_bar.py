"""The progress bar of a training run."""

from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from lib.training.record import as_yaml
from lib.training.run import Progress, Step


class ProgressBar:
    """A progress bar that moves with every step and shows the remaining time of the run."""

    def __init__(self) -> None:
        self._bar = tqdm(disable=True)
        self._dsc = ""

    def close(self) -> None:
        """Close the bar and leave its last state on the screen."""
        self._bar.close()

    def start(self, record: Mapping[str, Any]) -> None:
        """Print the record of the run and show the bar."""
        print(as_yaml(record), flush=True)
        layout = "{percentage:3.0f}%|{bar}| step {n_fmt} of {total_fmt}{postfix}"
        self._bar = tqdm(total=1, bar_format=layout)

    def step(self, step: Step) -> None:
        """Move the bar to a step."""
        self._bar.total = step.total_steps
        self._bar.set_postfix_str(
            f"epoch {step.epoch}, loss {step.loss:.3f}{self._dsc}, {step.eta_s / 60:.1f} min left",
            refresh=False,
        )
        self._bar.update(step.step - self._bar.n)

    def epoch(self, progress: Progress) -> None:
        """Show the DSC of an epoch's validation."""
        self._dsc = "" if progress.metric is None else f", DSC {progress.metric:.3f}"
        self._bar.refresh()
