"""What `gs.watch` costs a loop that somebody else wrote, measured beside the bare loop."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, final, runtime_checkable

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
from gafscope.instruments import Record, watch

if TYPE_CHECKING:
    import pandas as pd

BARE = "bare loop"
VIEW_COLUMNS = ("view_share", "view_loop_seconds", "view_longest")
VIEWED = "watched, every step, with a live panel"
_LIMIT = 50.0


@runtime_checkable
class View(AbstractContextManager[Any], Protocol):
    """A listener that shows the loop between entering and leaving."""

    def __call__(self, record: Record, /) -> None:
        """Take a record in."""


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


def measure_watch_cost(
    settings: WatchCostSettings, view: Callable[[Callable[[], float]], View] | None = None
) -> pd.DataFrame:
    """Time the loops and measure the memory of one of their steps.

    Args:
        settings: The settings.
        view: Makes a live view, given the clock of its loop; None leaves that loop out.

    Returns:
        One row a network and loop: `model`, `parameters`, `loop`, `seconds` (median step), `ratio`
        to the bare loop (median over the turns) with its quartiles, `extra_MB` (peak memory of a
        measured step beyond that of the bare loop's). Of the loop with a live view, NaN of others:
        `view_share` (time in the view over that of the whole loop, after the view has been set
        up), `view_loop_seconds` (the whole loop), `view_longest` (seconds at once: a picture, if
        the loop was long enough for one).

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
        parts = [_measure(settings, name, view) for name in settings.models]
    return pd.DataFrame([row for part in parts for row in part])


def _measure(
    settings: WatchCostSettings, name: str, view: Callable[[Callable[[], float]], View] | None
) -> list[dict[str, Any]]:
    n = settings.microbatches * settings.microbatch_size
    case = make_case(name, n, device=settings.device, seed=settings.seed)
    parameters = sum(parameter.numel() for parameter in case.parameters)
    with ExitStack() as stack:
        loops = {
            label: _loop(settings, case, options, stack)
            for label, options in _ways(settings.every).items()
        }
        viewed = None if view is None else _Viewed(view)
        if viewed is not None:
            loops[VIEWED] = _viewed_loop(settings, case, viewed, stack)
        turns = {label: partial(_several, loop, settings.every) for label, loop in loops.items()}
        total = settings.repeats + WARM_UPS
        with tqdm(total=total, desc=f"cost, {name}", delay=2.0, leave=False) as bar:
            warm_up(turns, dict.fromkeys(turns, BARE), _LIMIT, settings.device, bar.update)
            seconds = take_turns(turns, settings.repeats, settings.device, bar.update)
        shown = {} if viewed is None else viewed.times
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
            **(shown if label == VIEWED else dict.fromkeys(VIEW_COLUMNS, math.nan)),
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
        "watched, every step, ghost": {"every": 1, "memory": "ghost"},
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


@final
class _Viewed:
    """A live view whose time is taken.

    The other loops take their turns meanwhile, so the view is given a clock that runs with its
    own loop only: a share of that loop's time is what it may spend.

    Args:
        view: Makes the view.
    """

    def __init__(self, view: Callable[[Callable[[], float]], View]):
        self._passed = self._spent = self._longest = self._set_up = 0.0
        self._since: float | None = None
        self._view = view(self._clock)

    def __enter__(self) -> None:
        with self.running():
            self._view.__enter__()
        self._set_up = self._passed

    def __exit__(self, *error: Any) -> None:
        self._view.__exit__(*error)

    def __call__(self, record: Record) -> None:
        began = time.perf_counter()
        self._view(record)
        seconds = time.perf_counter() - began
        self._spent += seconds
        self._longest = max(self._longest, seconds)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let the clock run."""
        self._since = time.perf_counter()
        try:
            yield
        finally:
            self._passed, self._since = self._clock(), None

    @property
    def times(self) -> dict[str, float]:
        """Give the columns that tell what the view took."""
        loop = self._passed - self._set_up
        return dict(zip(VIEW_COLUMNS, (self._spent / loop, loop, self._longest), strict=True))

    def _clock(self) -> float:
        return self._passed + (0 if self._since is None else time.perf_counter() - self._since)


def _viewed_loop(
    settings: WatchCostSettings, case: Case, viewed: _Viewed, stack: ExitStack
) -> Callable[[], None]:
    bare = _loop(settings, case, {"every": 1, "listeners": [viewed]}, stack)

    def step() -> None:
        with viewed.running():
            bare()

    return step
