"""What a GAF step costs beside plain averaging, measured side by side in one process."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD
from tqdm import trange

from gafscope.aggregation import GAF, Mean, Weighting
from gafscope.errors import UserError
from gafscope.gradients import supervised
from gafscope.models import build_model
from gafscope.trainer import Trainer

if TYPE_CHECKING:
    import pandas as pd

PLAIN = "plain loop"
# On a GPU the masked step takes over after the first and is captured in its fourth.
_WARM_UPS = 6


@final
@dataclass(frozen=True)
class StepCostSettings:
    """Time a GAF step against an averaging step of the same samples.

    The plain loop is what people write: k times forward and backward with loss / k, then
    optimizer.step(). GAF runs at tau = 2, where it does all its work and every step is taken; a
    rejected step is cheaper. The masked one decides on the device and masks its update (train
    --device-decision); on a CPU that only costs. The kinds take turns, and a ratio is the median
    over the turns.
    """

    model: str = "resnet18"
    """Network: mlp, cnn, resnet18, resnet34 or vit."""
    stem: str = "imagenet"
    """Stem of a ResNet: imagenet, as in the paper, or cifar."""
    microbatches: int = 2
    """k, microbatches a step."""
    microbatch_size: int = 100
    """u, samples a microbatch."""
    classes: int = 100
    """Classes of the random 3x32x32 images."""
    repeats: int = 21
    """Timed steps of each kind."""
    channels_last: bool = True
    """Lay images out channels last."""
    threads: int | None = None
    """Processor threads; torch's choice when not given."""
    device: str = "cpu"
    """cpu or cuda."""
    seed: int = 0
    """Seed of weights and images."""
    output: str = "runs/cost"
    """Folder of the table."""


def measure_step_cost(settings: StepCostSettings) -> pd.DataFrame:
    """Time the kinds of step in turn.

    Args:
        settings: The settings.

    Returns:
        One row a kind: `seconds` (median), `ratio` to the plain loop and `ratio_to_mean` to the
        trainer's own averaging (medians over the turns), each ratio with its quartiles.

    Raises:
        UserError: If a setting is wrong.
    """
    if settings.repeats < 1 or settings.microbatches < 2 or settings.microbatch_size < 1:
        raise UserError(
            "cost needs repeats >= 1, microbatches >= 2 and microbatch_size >= 1, but found "
            f"{settings.repeats}, {settings.microbatches} and {settings.microbatch_size}."
        )
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads or before)
    try:
        return _table(_measure(settings))
    finally:
        torch.set_num_threads(before)


def _measure(settings: StepCostSettings) -> dict[str, np.ndarray]:
    options = {"stem": settings.stem} if settings.model.startswith("resnet") else {}
    model = build_model(
        settings.model,
        input_shape=(3, 32, 32),
        num_classes=settings.classes,
        seed=settings.seed,
        **options,
    ).to(settings.device)
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    batch = _images(settings)
    k = settings.microbatches
    steps = {
        PLAIN: _plain_step(copy.deepcopy(model), batch, k),
        "Mean": _trainer_step(copy.deepcopy(model), batch, k, Mean()),
        "GAF": _trainer_step(copy.deepcopy(model), batch, k, GAF(tau=2.0)),
        "masked GAF": _trainer_step(copy.deepcopy(model), batch, k, GAF(tau=2.0), masked=True),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in trange(-_WARM_UPS, settings.repeats, desc="cost", delay=2.0, leave=False):
        names = list(steps)
        # Nobody always goes first, and the first turns only warm up.
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds = _timed(steps[name], settings.device)
            if turn >= 0:
                times[name].append(seconds)
    return {name: np.asarray(values) for name, values in times.items()}


def _images(settings: StepCostSettings) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(settings.seed)
    n = settings.microbatches * settings.microbatch_size
    images = torch.randn(n, 3, 32, 32, generator=generator).to(settings.device)
    labels = torch.randint(settings.classes, (n,), generator=generator).to(settings.device)
    return images, labels


def _optimizer(model: nn.Module) -> SGD:
    return SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=0.01)


def _plain_step(model: nn.Module, batch: tuple[Tensor, Tensor], k: int) -> Callable[[], Any]:
    optimizer = _optimizer(model)
    parts = list(zip(batch[0].chunk(k), batch[1].chunk(k), strict=True))

    def step() -> None:
        optimizer.zero_grad()
        for inputs, targets in parts:
            (nn.functional.cross_entropy(model(inputs), targets) / k).backward()
        optimizer.step()

    return step


def _trainer_step(
    model: nn.Module, batch: tuple[Tensor, Tensor], k: int, rule: Weighting, masked: bool = False
) -> Callable[[], Any]:
    trainer = Trainer(
        model,
        supervised(nn.functional.cross_entropy),
        _optimizer(model),
        aggregator=rule,
        microbatches=k,
        device_decision=masked,
    )
    return lambda: trainer.advance(batch)


def _timed(step: Callable[[], Any], device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    started = time.perf_counter()
    step()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _table(times: dict[str, np.ndarray]) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for name, seconds in times.items():
        row: dict[str, Any] = {"step": name, "seconds": float(np.median(seconds))}
        for column, base in (("ratio", PLAIN), ("ratio_to_mean", "Mean")):
            low, middle, high = np.quantile(seconds / times[base], (0.25, 0.5, 0.75))
            row |= {column: middle, f"{column}_low": low, f"{column}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)
