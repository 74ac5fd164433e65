"""How far a run is at every step, and what its learning rate is there."""

import math

from lib.recipes.schema import ScheduleConfig


def learning_rate(schedule: ScheduleConfig, step: int, share_of_budget: float = 0.0) -> float:
    """Return the rate of step `step`, counted from 0; `share_of_budget` hurries a cosine to its end."""
    rate = schedule.learning_rate
    if step < schedule.warmup_steps:
        return rate * (step + 1) / schedule.warmup_steps
    if schedule.decay == "step":
        return float(rate * 0.1 ** (step // schedule.steps_per_epoch // schedule.decay_epochs))
    share = share_of_run(schedule, step, share_of_budget)
    return rate * 0.5 * (1 + math.cos(math.pi * share))


def share_of_run(schedule: ScheduleConfig, step: int, share_of_budget: float = 0.0) -> float:
    """Return how much of the run lies behind step `step`, 0 to 1: by steps, or by budget if that is more."""
    by_steps = step / (schedule.epochs * schedule.steps_per_epoch)
    return min(1.0, max(by_steps, share_of_budget))
