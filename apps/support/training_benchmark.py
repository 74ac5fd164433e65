"""Benchmark of training steps, against the plain step of earlier versions."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from torch.nn import functional

from apps.support.benchmark_record import Section
from lib.backends.eager import fast_bfloat16
from lib.inference.preprocessing import Pipeline
from lib.jobs.priority import background_threads, training_threads
from lib.networks.convolution import TrainableConv3d, TrainableConvTranspose3d
from lib.networks.losses import DICE_SMOOTH, FocalDiceLoss
from lib.recipes.schema import Recipe
from lib.recipes.yaml_files import find_recipe
from lib.training.cases import find_labelled_cases, prepare_cases
from lib.training.crops import CropDataset
from lib.training.distributed import SINGLE_PROCESS
from lib.training.schedule import Budget
from lib.training.state import TrainingState, initial_state
from lib.training.steps import Trainer
from phantom.cohort import write_cohort

CASES = 4
STEPS = 4
"""Number of steps in one measurement: crops differ in their cost."""


_PLAIN: dict[type, type] = {
    TrainableConv3d: nn.Conv3d,
    TrainableConvTranspose3d: nn.ConvTranspose3d,
}


class PlainLoss(FocalDiceLoss):
    """The loss as earlier versions computed it: from the equations, differentiated by autograd."""

    def forward(self, logits: Tensor, label: Tensor, contoured: Tensor) -> Tensor:
        """Return the same as `FocalDiceLoss`."""
        log_p = functional.log_softmax(logits.float(), dim=1)
        as_background = ~contoured
        as_background[:, 0] = True
        background = log_p.masked_fill(~as_background[:, :, None, None, None], -torch.inf)
        merged = torch.logsumexp(background, dim=1, keepdim=True)
        log_p = torch.cat([merged, log_p[:, 1:]], dim=1)
        log_pt = log_p.gather(1, label[:, None])[:, 0]
        weights = self.class_weights**self._strength
        focal = -weights[label] * (1 - log_pt.exp()).pow(self.gamma) * log_pt
        organs = contoured[:, 1:].float()
        p = log_p[:, 1:].exp() * organs[:, :, None, None, None]
        truth = functional.one_hot(label, log_p.shape[1])[..., 1:].movedim(-1, 1).to(p.dtype)
        axes = (0, 2, 3, 4)
        overlap = (p * truth).sum(axes)
        total = p.sum(axes) + (truth * organs[:, :, None, None, None]).sum(axes)
        dice = (2 * overlap + DICE_SMOOTH) / (total + DICE_SMOOTH)
        counted = (organs.sum(0) > 0).to(dice.dtype)
        dice_loss = ((1 - dice) * counted).sum() / counted.sum().clamp(min=1)
        return focal.mean() + self.dice_weight * dice_loss


def training_steps(recipe_name: str, repeats: int, *, device: str = "cpu") -> Section:
    """Return the time of a training step, now and with plain convolutions and loss, measured in turn.

    `seconds` is the processor time of all threads; `critical` that of the thread that starts the others, which
    on an idle machine is the time that passes. The ratios compare one thread with one thread, and the
    retraining of this machine: earlier versions used half of the cores.
    """
    recipe = find_recipe(recipe_name)
    now, before = training_threads(), background_threads()
    with TemporaryDirectory(prefix="organnet-bench-") as name:
        folder = Path(name)
        write_cohort(folder, recipe=recipe, cases=CASES, labelled=CASES, seed=1, dicom_cases=0)
        cases = prepare_cases(find_labelled_cases(folder), Pipeline(recipe), folder / "cache")
        crops = CropDataset(cases, recipe, seed=0, length=10**9)
        fast, plain = (_stepper(recipe, crops, device, is_plain=p) for p in (False, True))
        rows = {
            "before, one thread": (plain, 1),
            "now, one thread": (fast, 1),
            f"before, retraining ({before} threads)": (plain, before),
            f"now, retraining ({now} threads)": (fast, now),
        }
        times: dict[str, list[tuple[float, float]]] = {row: [] for row in rows}
        threads_before = torch.get_num_threads()
        for number in range(repeats + 1):
            for row, (steps, threads) in rows.items():
                torch.set_num_threads(threads)
                measured = _timed(steps)
                if number:  # the first round warms up
                    times[row].append(measured)
        torch.set_num_threads(threads_before)
    values = {
        row: {
            "seconds": statistics.median(all_threads for all_threads, _ in measured),
            "critical": statistics.median(main_thread for _, main_thread in measured),
        }
        for row, measured in times.items()
    }
    before_one, now_one, before_all, now_all = values.values()
    return Section(
        name=f"training step of {recipe_name}",
        unit="s",
        rows=values,
        ratios={
            "training_vs_before": before_one["seconds"] / now_one["seconds"],
            "retraining_vs_before": before_all["critical"] / now_all["critical"],
        },
        notes=(
            f"batches of {recipe.schedule.batch_size} crops of {recipe.crop_vox} voxels, "
            f"{'bfloat16' if fast_bfloat16(device) else 'float32'}",
        ),
    )


def _stepper(
    recipe: Recipe, crops: CropDataset, device: str, *, is_plain: bool
) -> Callable[[], None]:
    """Return a function that takes `STEPS` training steps."""
    torch.manual_seed(0)
    state: TrainingState = initial_state(recipe, device, None)
    if is_plain:
        for module in state.network.modules():
            if type(module) in _PLAIN:
                module.__class__ = _PLAIN[type(module)]
    loss = (PlainLoss if is_plain else FocalDiceLoss)(recipe).to(device)
    trainer = Trainer(
        crops=crops,
        loss=loss,
        network=state.network,
        group=SINGLE_PROCESS,
        device=device,
        in_bfloat16=fast_bfloat16(device),
        seed=0,
        budget=Budget(),
    )
    number = 0

    def steps() -> None:
        nonlocal number
        for _ in range(STEPS):
            batch = [crops[number + index] for index in range(recipe.schedule.batch_size)]
            number += len(batch)
            trainer.step(state, *(torch.stack(parts) for parts in zip(*batch, strict=True)))

    return steps


def _timed(steps: Callable[[], None]) -> tuple[float, float]:
    """Return seconds of processor time of one step: of all threads, and of this thread."""
    all_threads, this_thread = time.process_time(), time.thread_time()
    steps()
    return (
        (time.process_time() - all_threads) / STEPS,
        (time.thread_time() - this_thread) / STEPS,
    )
