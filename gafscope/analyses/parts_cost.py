"""Where the time of a Gramian goes, part by part, beside one plain forward and backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
from tqdm import tqdm

from gafscope.analyses.cost_cases import check_cases, make_case
from gafscope.analyses.cost_floor import flop_floor
from gafscope.analyses.cost_methods import PLAIN, check_engines, engine_gramian, plain_pass
from gafscope.analyses.cost_traffic import OTHER, PARTS, profiled, traffic, traffic_floor
from gafscope.analyses.cost_turns import check_turns, take_turns, using_threads
from gafscope.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

_WHOLE = "all"


@final
@dataclass(frozen=True)
class PartsCostSettings:
    """Where the time of a Gramian of single samples goes, and which floors it stands on.

    Time: both take turns, and the profiler divides each one's median among its operations.
    Bytes: each operation reads its operands and writes its result once. The floors count the
    cheapest exact form: multiply-adds, and bytes moved when each layer's input and output
    gradient is read once more and no weight's gradient is written.
    """

    models: tuple[str, ...] = ("resnet18", "vit", "gpt", "cnn")
    """Networks, as in --what engines."""
    samples: tuple[int, ...] = (16, 64, 128)
    """n, the numbers of samples."""
    engine: str = "ghost"
    """Engine, as in --what engines."""
    repeats: int = 7
    """Timed turns."""
    threads: int = 1
    """Processor threads."""
    seed: int = 0
    """Seed of weights and samples."""
    output: str = "runs/cost"
    """Folder of the table."""


def measure_parts_cost(settings: PartsCostSettings) -> pd.DataFrame:
    """Measure every network at every size.

    Args:
        settings: The settings.

    Returns:
        One row a model, size and part, and one for all of them together: `plain` and `gramian`,
        time in units of the whole plain pass; `plain_bytes` and `gramian_bytes` likewise; in the
        row of all parts `floor_operations` and `floor_bytes`.

    Raises:
        UserError: If a setting is wrong.
    """
    import pandas as pd

    check_turns(settings.repeats, 1, "cpu", settings.threads)
    check_cases(settings.models)
    check_engines((settings.engine,))
    if not settings.samples or min(settings.samples) < 2:
        raise UserError(f"cost compares at least 2 samples, but found samples={settings.samples}.")
    sizes = [(model, n) for model in settings.models for n in settings.samples]
    rows: list[dict[str, Any]] = []
    with using_threads(settings.threads):
        for model, n in tqdm(sizes, desc="cost", delay=2.0, leave=False):
            rows += _measure(model, n, settings)
    return pd.DataFrame(rows)


def _measure(model: str, n: int, settings: PartsCostSettings) -> list[dict[str, Any]]:
    case = make_case(model, n, seed=settings.seed)
    plain, ours = plain_pass(case), engine_gramian(case, n, settings.engine)
    calls = {PLAIN: plain, settings.engine: ours}
    take_turns(calls, 2, "cpu", lambda: None)
    seconds = take_turns(calls, settings.repeats, "cpu", lambda: None)
    ratio = float(np.median(seconds[settings.engine] / seconds[PLAIN]))
    times, moved = {}, {}
    for name, call, whole in ((PLAIN, plain, 1.0), (settings.engine, ours, ratio)):
        times[name] = {part: share * whole for part, share in profiled(call).items()}
        moved[name] = traffic(call)
    unit = moved[PLAIN].total()
    head = {"model": model, "n": n}
    rows = [
        head
        | {
            "part": part,
            "plain": times[PLAIN].get(part, 0.0),
            "gramian": times[settings.engine].get(part, 0.0),
            "plain_bytes": moved[PLAIN][part] / unit,
            "gramian_bytes": moved[settings.engine][part] / unit,
        }
        for part in (*PARTS, OTHER)
    ]
    whole = {"part": _WHOLE, "plain": 1.0, "gramian": ratio, "plain_bytes": 1.0}
    whole |= {
        "gramian_bytes": moved[settings.engine].total() / unit,
        "floor_operations": flop_floor(case, n).gramian,
        "floor_bytes": traffic_floor(case, unit),
    }
    return [*rows, head | whole]
