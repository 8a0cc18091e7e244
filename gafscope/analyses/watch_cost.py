"""What `gs.watch` costs a loop that somebody else wrote, measured beside the bare loop."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from torch.optim import SGD
from tqdm import tqdm

from gafscope.aggregation import GAF
from gafscope.analyses.cost_cases import Case, check_cases, make_case
from gafscope.analyses.cost_memory import peak_extra_bytes
from gafscope.analyses.cost_turns import (
    WARM_UPS,
    check_turns,
    quartiles,
    take_turns,
    using_threads,
    warm_up,
)
from gafscope.errors import UserError
from gafscope.instruments import watch

if TYPE_CHECKING:
    import pandas as pd

BARE = "bare loop"
_LIMIT = 50.0


@final
@dataclass(frozen=True)
class WatchCostSettings:
    """Time an accumulation loop that is watched against the same loop bare.

    The loop is the usual one: k times forward and backward of loss / k, then a step of SGD with
    momentum. A turn is as many steps as lie between two measurements, so that watching now and
    then is timed with its measurement. All loops take turns; a ratio is the median over the turns.
    """

    models: tuple[str, ...] = ("gpt", "resnet18")
    """Networks: gpt (64 tokens a sample), resnet18 (CIFAR stem, GroupNorm), vit, cnn or mlp."""
    microbatches: int = 4
    """k, backwards a step."""
    microbatch_size: int = 16
    """u, samples a backward."""
    every: int = 10
    """Steps between two measurements, of the loops that are not measured at each step."""
    repeats: int = 5
    """Timed turns."""
    threads: int | None = None
    """Processor threads; torch's choice when not given."""
    device: str = "cpu"
    """cpu or cuda."""
    seed: int = 0
    """Seed of weights and samples."""
    output: str = "runs/cost"
    """Folder of the table."""


def measure_watch_cost(settings: WatchCostSettings) -> pd.DataFrame:
    """Time the loops and measure the memory of one of their steps.

    Args:
        settings: The settings.

    Returns:
        One row a network and loop: `model`, `parameters`, `loop`, `seconds` (median step), `ratio`
        to the bare loop (median over the turns) with its quartiles, `extra_MB` (peak memory of a
        measured step beyond that of the bare loop's).

    Raises:
        UserError: If a setting is wrong.
    """
    import pandas as pd

    check_cases(settings.models)
    threads = settings.threads or torch.get_num_threads()
    check_turns(settings.repeats, 1, settings.device, threads)
    if settings.microbatches < 2 or settings.microbatch_size < 1 or settings.every < 1:
        raise UserError(
            "cost needs microbatches >= 2, microbatch_size >= 1 and every >= 1, but found "
            f"{settings.microbatches}, {settings.microbatch_size} and {settings.every}."
        )
    with using_threads(threads):
        parts = [_measure(settings, name) for name in settings.models]
    return pd.DataFrame([row for part in parts for row in part])


def _measure(settings: WatchCostSettings, name: str) -> list[dict[str, Any]]:
    n = settings.microbatches * settings.microbatch_size
    case = make_case(name, n, device=settings.device, seed=settings.seed)
    parameters = sum(parameter.numel() for parameter in case.parameters)
    with ExitStack() as stack:
        loops = {
            label: _loop(settings, case, options, stack)
            for label, options in _ways(settings.every).items()
        }
        turns = {label: partial(_several, loop, settings.every) for label, loop in loops.items()}
        total = settings.repeats + WARM_UPS
        with tqdm(total=total, desc=f"cost, {name}", delay=2.0, leave=False) as bar:
            warm_up(turns, dict.fromkeys(turns, BARE), _LIMIT, settings.device, bar.update)
            seconds = take_turns(turns, settings.repeats, settings.device, bar.update)
        # Every turn begins with a measured step, and so does what follows the last one.
        bytes_of = {label: peak_extra_bytes(loop, settings.device) for label, loop in loops.items()}
    return [
        {
            "model": name,
            "parameters": parameters,
            "loop": label,
            "seconds": float(np.median(seconds[label])) / settings.every,
            **quartiles("ratio", seconds[label] / seconds[BARE]),
            "extra_MB": (bytes_of[label] - bytes_of[BARE]) / 1e6,
        }
        for label in loops
    ]


def _ways(every: int) -> dict[str, dict[str, Any] | None]:
    return {
        BARE: None,
        f"watched, every {every} steps": {"every": every},
        "watched, every step": {"every": 1},
        "watched, every step, rows in bf16": {"every": 1, "memory": "bf16"},
        "watched, every step, rows on disk": {"every": 1, "memory": "disk"},
        # At tau = 2 every step is taken; a rejected one is cheaper.
        f"filtered by GAF, recorded every {every}": {"every": every, "filter": GAF(tau=2.0)},
    }


def _loop(
    settings: WatchCostSettings, case: Case, options: dict[str, Any] | None, stack: ExitStack
) -> Callable[[], None]:
    """Make one step of a loop of its own model, watched until the stack is closed."""
    model, k = copy.deepcopy(case.model), settings.microbatches
    optimizer = SGD(model.parameters(), lr=1e-4, momentum=0.9)
    parts = list(zip(case.batch[0].chunk(k), case.batch[1].chunk(k), strict=True))
    if options is not None:
        stack.enter_context(watch(model, optimizer, **options))

    def step() -> None:
        for part in parts:
            (case.loss(model, part).mean() / k).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _several(step: Callable[[], None], count: int) -> None:
    for _ in range(count):
        step()
