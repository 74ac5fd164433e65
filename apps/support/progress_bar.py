"""What a person sees of a training while it goes on."""

from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from lib.training.record import as_yaml
from lib.training.run import Progress, Step


class Bar:
    """A progress bar that moves with every step, and says how long the run still takes."""

    def __init__(self) -> None:
        self._bar = tqdm(disable=True)
        self._dsc = ""

    def __enter__(self) -> "Bar":
        """Show it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave it as it is."""
        self._bar.close()

    def start(self, record: Mapping[str, Any]) -> None:
        """Say what the run is."""
        print(as_yaml(record), flush=True)
        layout = "{percentage:3.0f}%|{bar}| step {n_fmt} of {total_fmt}{postfix}"
        self._bar = tqdm(total=1, bar_format=layout)

    def step(self, step: Step) -> None:
        """Move to where the run is."""
        self._bar.total = step.total_steps
        self._bar.set_postfix_str(
            f"epoch {step.epoch}, loss {step.loss:.3f}{self._dsc}, {step.eta_s / 60:.1f} min left",
            refresh=False,
        )
        self._bar.update(step.step - self._bar.n)

    def epoch(self, progress: Progress) -> None:
        """Take in the validation, and draw the bar."""
        self._dsc = "" if progress.metric is None else f", DSC {progress.metric:.3f}"
        self._bar.refresh()
