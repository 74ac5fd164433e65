"""The optimiser steps of one epoch."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from lib.networks.losses import FocalDiceLoss
from lib.training.click_simulation import with_clicks
from lib.training.crops import CropDataset, Sample
from lib.training.distributed import ProcessGroup
from lib.training.progress import Step, time_left_s
from lib.training.schedule import Budget, learning_rate, share_of_run
from lib.training.state import TrainingState


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainer:
    """Optimiser steps of a run.

    Attributes:
        crops: All crops of the run, by number.
        loss: The recipe's loss.
        network: The state's network, wrapped for several processes.
        group: Processes that share each batch.
        device: Device of the network.
        in_bfloat16: Whether the network computes in bfloat16.
        seed: Seed of the run.
        budget: Time budget; an epoch ends when it is spent.
        on_step: Called after each step, if given.
    """

    crops: CropDataset
    loss: FocalDiceLoss
    network: nn.Module
    group: ProcessGroup
    device: str
    in_bfloat16: bool
    seed: int
    budget: Budget
    on_step: Callable[[Step], None] | None = None

    def run_epoch(self, state: TrainingState) -> tuple[float, float]:
        """Run the steps of one epoch; return the mean loss and the last learning rate."""
        schedule = self.crops.recipe.schedule
        first = state.epoch * schedule.steps_per_epoch
        losses, rate = [], 0.0
        state.network.train()
        # Random numbers of an epoch (dropout) depend on its number only, so that a resumed run repeats them.
        torch.manual_seed(self.seed * 1_000_003 + state.epoch + (self.group.rank << 40))
        for step, sample in enumerate(self._batches(first), start=first):
            share = self.budget.measure()
            rate = learning_rate(schedule, step, share)
            for group in state.optimizer.param_groups:
                group["lr"] = rate
            self.loss.fade(share_of_run(schedule, step, share))
            losses.append(self.step(state, *self._with_clicks(state, step, sample)))
            self._report(step, losses[-1], rate)
            if share >= 1:
                break
        mean = self.group.sum([sum(losses)])[0] / self.group.size / len(losses)
        return mean, rate

    def _batches(self, first: int) -> DataLoader[Sample]:
        """Return this process's share of each batch, for the epoch whose first step is `first`."""
        schedule = self.crops.recipe.schedule
        share = self.group.share_of(schedule.batch_size)
        numbers = [
            step * schedule.batch_size + self.group.rank * share + index
            for step in range(first, first + schedule.steps_per_epoch)
            for index in range(share)
        ]
        return DataLoader(Subset(self.crops, numbers), share, num_workers=0)

    def _with_clicks(self, state: TrainingState, step: int, sample: Sample) -> Sample:
        """Return a batch with simulated clicks, if the recipe has them."""
        recipe = self.crops.recipe
        if not recipe.has_clicks:
            return sample
        image, label, contoured = sample
        rng = np.random.default_rng([self.seed, step, self.group.rank])

        def predict(images: Tensor) -> Tensor:
            return self._evaluated(state.network, images)

        return (
            with_clicks(image, label, contoured, recipe, predict=predict, rng=rng),
            label,
            contoured,
        )

    def _evaluated(self, network: nn.Module, image: Tensor) -> Tensor:
        """Return the most likely class of each voxel `(N, X, Y, Z)`, without a trace in the network."""
        network.eval()
        try:
            with (
                torch.inference_mode(),
                torch.autocast(
                    torch.device(self.device).type, torch.bfloat16, enabled=self.in_bfloat16
                ),
            ):
                image = image.to(self.device).contiguous(memory_format=torch.channels_last_3d)
                best: Tensor = network(image).argmax(dim=1).cpu()
        finally:
            network.train()
        return best

    def step(self, state: TrainingState, image: Tensor, label: Tensor, contoured: Tensor) -> float:
        """Update the weights with one batch; return its loss."""
        image = image.to(self.device).contiguous(memory_format=torch.channels_last_3d)
        kind = torch.device(self.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=self.in_bfloat16):
            logits = self.network(image)
        loss = self.loss(logits, label.to(self.device), contoured.to(self.device))
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

    def _report(self, step: int, loss: float, rate: float) -> None:
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
