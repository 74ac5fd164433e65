"""What may differ between two runs of one recipe."""

from dataclasses import dataclass, field
from typing import Literal

from lib.errors import ConfigError
from lib.inference.single_pass import fast_bfloat16
from lib.training.crops import Favoured


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What may differ between two runs of one recipe.

    Attributes:
        seed: Of the first weights and of every crop.
        device: `cpu`, `cuda` or `cuda:N`.
        max_minutes: Wall-clock time, where set: the schedule is compressed so that it ends by then. Such a run
            depends on the machine's speed and is not repeatable bit for bit.
        cpu_minutes: The same by the processor time of the training steps (`lib.training.budget`).
        epochs: In place of the recipe's.
        precision: `auto` computes in bfloat16 where the device does that fast; `float32` nowhere, so that other
            machines come close to the same weights.
        favoured: Cases that more crops come from than from others.
        resume: Go on from the folder's checkpoint where it is of the same run.
    """

    seed: int = 0
    device: str = "cpu"
    max_minutes: float | None = None
    cpu_minutes: float | None = None
    epochs: int | None = None
    precision: Literal["auto", "float32"] = "auto"
    favoured: Favoured = field(default_factory=Favoured)
    resume: bool = True

    def __post_init__(self) -> None:
        limits = (self.max_minutes, self.cpu_minutes)
        if None not in limits:
            raise ConfigError("a run is limited in wall-clock or in processor time, not in both")
        if any(limit is not None and not limit > 0 for limit in limits):
            raise ConfigError("a run's time limit must be above 0 minutes")

    @property
    def in_bfloat16(self) -> bool:
        """Whether the network computes in bfloat16; its weights and the loss are float32 either way."""
        return self.precision == "auto" and fast_bfloat16(self.device)
