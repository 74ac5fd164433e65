"""One epoch of training: its crops, its steps."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from lib.inference import fast_bfloat16
from lib.losses import FocalDiceLoss
from lib.training.budget import Budget
from lib.training.crops import CropDataset, Sample
from lib.training.progress import Step, time_left_s
from lib.training.schedule import learning_rate, share_of_run
from lib.training.state import RunState


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainer:
    """Takes the steps of a run.

    Attributes:
        crops: All crops of the run, by their number.
        loss: The recipe's.
        device: Where the network is.
        seed: The run's.
        budget: Ends an epoch when it is spent.
        on_step: Told after each step, where somebody wants to know.
    """

    crops: CropDataset
    loss: FocalDiceLoss
    device: str
    seed: int
    budget: Budget
    on_step: Callable[[Step], None] | None = None

    def epoch(self, state: RunState) -> tuple[float, float]:
        """Take one epoch's steps; return the mean loss and the last learning rate."""
        schedule = self.crops.recipe.schedule
        first = state.epoch * schedule.steps_per_epoch
        losses, rate = [], 0.0
        state.network.train()
        # What an epoch draws (dropout) follows from its number, so that a resumed run draws the same.
        torch.manual_seed(self.seed * 1_000_003 + state.epoch)
        for step, sample in enumerate(self._batches(first), start=first):
            share = self.budget.measure()
            rate = learning_rate(schedule, step, share)
            for group in state.optimizer.param_groups:
                group["lr"] = rate
            self.loss.fade(share_of_run(schedule, step, share))
            losses.append(self._step(state, *sample))
            self._tell(step, losses[-1], rate)
            if share >= 1:
                break
        return sum(losses) / len(losses), rate

    def _batches(self, first: int) -> DataLoader[Sample]:
        """Return the batches of the epoch whose first step is `first`."""
        schedule = self.crops.recipe.schedule
        size = schedule.batch_size
        numbers = range(first * size, (first + schedule.steps_per_epoch) * size)
        return DataLoader(Subset(self.crops, numbers), size, num_workers=0)

    def _step(self, state: RunState, image: Tensor, label: Tensor, known: Tensor) -> float:
        """Move the weights by one batch; return its loss."""
        image = image.to(self.device).contiguous(memory_format=torch.channels_last_3d)
        kind = torch.device(self.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=fast_bfloat16(self.device)):
            logits = state.network(image)
        loss = self.loss(logits, label.to(self.device), known.to(self.device))
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip = self.crops.recipe.schedule.gradient_clip
        if clip:
            nn.utils.clip_grad_norm_(state.network.parameters(), clip)
        state.optimizer.step()
        if state.average:
            state.average.update_parameters(state.network)
        state.steps += 1
        return float(loss.detach())

    def _tell(self, step: int, loss: float, rate: float) -> None:
        if self.on_step is None:
            return
        schedule = self.crops.recipe.schedule
        planned = schedule.epochs * schedule.steps_per_epoch
        self.on_step(
            Step(
                step=step + 1,
                total_steps=planned,
                epoch=step // schedule.steps_per_epoch + 1,
                loss=loss,
                learning_rate=rate,
                elapsed_s=self.budget.wall_s,
                eta_s=time_left_s(step + 1, planned, self.budget),
            )
        )
