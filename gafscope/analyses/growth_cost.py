"""How the time of a Gramian grows with n samples, k microbatches and P parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
from tqdm import tqdm

from gafscope.analyses.cost_cases import check_cases, default_width, make_case
from gafscope.analyses.cost_methods import PLAIN, check_engines, engine_gramian, plain_pass
from gafscope.analyses.cost_turns import (
    WARM_UPS,
    Tick,
    check_turns,
    quartiles,
    take_turns,
    using_threads,
    warm_up,
)
from gafscope.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


@final
@dataclass(frozen=True)
class GrowthCostSettings:
    """Measure how the time of a Gramian grows, by engine.

    Three series on one network: with n single samples; with k microbatches of the same samples;
    and with P parameters, by the network's width. The slope is that of a straight line through
    log time over log size: 1 is proportional, 2 quadratic. At each size the engines take turns
    with one plain forward and backward of the same samples.
    """

    model: str = "cnn"
    """Network: resnet18, vit, gpt, cnn or mlp."""
    samples: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    """n of the first series."""
    fixed_samples: int = 64
    """n of the other two."""
    microbatches: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    """k of the second series; each divides the fixed n."""
    widths: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    """Widths of the third series, as multiples of the network's own."""
    engines: tuple[str, ...] = ("loop", "vmap", "ghost")
    """Engines: loop, vmap, ghost or auto; variants as in --what engines."""
    repeats: int = 11
    """Timed turns at each size."""
    limit: float = 50.0
    """An engine that takes more than this many times the plain pass to warm up is not timed."""
    threads: int = 1
    """Processor threads."""
    device: str = "cpu"
    """cpu or cuda."""
    seed: int = 0
    """Seed of weights and samples."""
    output: str = "runs/cost"
    """Folder of tables and figure."""


@final
@dataclass(frozen=True)
class _Size:
    growth: str
    n: int
    k: int
    width: int


def measure_growth_cost(settings: GrowthCostSettings) -> pd.DataFrame:
    """Time every engine at every size.

    Args:
        settings: The settings.

    Returns:
        One row a size and method: `growth`, which of n, k and P is varied, `size`, its value,
        `n`, `k`, `parameters`, `method`, `seconds` (median with quartiles) and `note`.

    Raises:
        UserError: If a setting is wrong.
    """
    import pandas as pd

    _check(settings)
    sizes = list(_sizes(settings))
    rows: list[dict[str, Any]] = []
    turns = len(sizes) * (WARM_UPS + settings.repeats)
    with using_threads(settings.threads), tqdm(total=turns, delay=2.0, leave=False) as bar:
        for size in sizes:
            bar.set_description(f"{settings.model} n={size.n} k={size.k} width={size.width}")
            rows += _measure_size(size, settings, bar.update)
    return pd.DataFrame(rows)


def growth_slopes(table: pd.DataFrame) -> pd.DataFrame:
    """Fit a straight line to log time over log size, by least squares.

    Args:
        table: As `measure_growth_cost` gives it.

    Returns:
        One row a series and method with at least 3 sizes: `slope`, the power of the size that
        time grows with, with its 95% interval, and `sizes`, their number.
    """
    import pandas as pd
    from scipy import stats

    rows = []
    timed = table.dropna(subset=["seconds"])
    for (growth, method), part in timed.groupby(["growth", "method"], sort=False):
        if len(part) < 3:
            continue
        fit: Any = stats.linregress(np.log(part["size"]), np.log(part["seconds"]))
        half = stats.t.ppf(0.975, len(part) - 2) * fit.stderr
        row = {"growth": growth, "method": method, "slope": fit.slope}
        row |= {"slope_low": fit.slope - half, "slope_high": fit.slope + half}
        rows.append(row | {"sizes": len(part)})
    columns = ["growth", "method", "slope", "slope_low", "slope_high", "sizes"]
    return pd.DataFrame(rows, columns=columns)


def _sizes(settings: GrowthCostSettings) -> Iterator[_Size]:
    width, n = default_width(settings.model), settings.fixed_samples
    for samples in settings.samples:
        yield _Size("n", samples, samples, width)
    for k in settings.microbatches:
        yield _Size("k", n, k, width)
    for factor in settings.widths:
        yield _Size("P", n, n, round(factor * width))


def _measure_size(size: _Size, settings: GrowthCostSettings, tick: Tick) -> list[dict[str, Any]]:
    device = settings.device
    case = make_case(settings.model, size.n, device=device, seed=settings.seed, width=size.width)
    calls = {PLAIN: plain_pass(case)}
    calls |= {engine: engine_gramian(case, size.k, engine) for engine in settings.engines}
    warm = warm_up(calls, dict.fromkeys(calls, PLAIN), settings.limit, device, tick)
    kept = {name: calls[name] for name in warm.results}
    warm.results.clear()
    seconds = take_turns(kept, settings.repeats, device, tick)
    numbers = sum(p.numel() for p in case.parameters)
    value = {"n": size.n, "k": size.k, "P": numbers}[size.growth]
    rows: list[dict[str, Any]] = []
    for name in calls:
        row: dict[str, Any] = {"growth": size.growth, "size": value, "n": size.n, "k": size.k}
        row |= {"parameters": numbers, "method": name}
        row |= quartiles("seconds", seconds[name]) if name in seconds else {"seconds": np.nan}
        rows.append(row | {"note": warm.notes.get(name, "")})
    return rows


def _check(settings: GrowthCostSettings) -> None:
    check_turns(settings.repeats, settings.limit, settings.device, settings.threads)
    check_cases((settings.model,))
    check_engines(settings.engines)
    sizes = (*settings.samples, *settings.microbatches, settings.fixed_samples)
    if min(sizes) < 2 or min(settings.widths, default=1) <= 0:
        raise UserError(
            "cost --what growth needs at least 2 samples or microbatches at every size, and "
            f"positive widths, but found samples={settings.samples}, "
            f"fixed_samples={settings.fixed_samples}, microbatches={settings.microbatches} and "
            f"widths={settings.widths}."
        )
    for k in settings.microbatches:
        if settings.fixed_samples % k:
            raise UserError(
                f"Every k of --microbatches must divide --fixed-samples, but {k} does not divide "
                f"{settings.fixed_samples}."
            )
