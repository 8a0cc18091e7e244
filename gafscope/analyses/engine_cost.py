"""What a Gramian costs beside one plain forward and backward of the same samples, by engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
from tqdm import tqdm

from gafscope.analyses.cost_cases import Case, check_cases, make_case
from gafscope.analyses.cost_floor import flop_floor
from gafscope.analyses.cost_memory import peak_extra_bytes
from gafscope.analyses.cost_methods import (
    AVERAGING,
    GAF_STEP,
    PLAIN,
    averaging_step,
    check_engines,
    engine_gramian,
    gaf_step,
    plain_pass,
    relative_errors,
)
from gafscope.analyses.cost_peers import missing_peers, peer_gramian, peer_names
from gafscope.analyses.cost_turns import (
    WARM_UPS,
    Call,
    Tick,
    check_turns,
    quartiles,
    take_turns,
    using_threads,
    warm_up,
)
from gafscope.errors import UserError
from gafscope.gradients import Gramian

if TYPE_CHECKING:
    import pandas as pd

# A larger relative error than float32 sums explain is worth a note.
_EXACT = 1e-4


@final
@dataclass(frozen=True)
class EngineCostSettings:
    """Time and memory of a Gramian by engine, beside one plain forward and backward.

    For each network and number of samples: the Gramian of all single samples, the per-sample GAF
    step over an averaging step of the same samples, and the Gramian of k microbatches of u
    samples. All take turns in one process; ratios are medians over the turns. Opacus, TorchJD
    and BackPACK stand beside them where they are installed: pip install -e '.[peers]', and pip
    install --no-deps backpack-for-pytorch, whose torchvision nothing here needs.

    --what engines measures this (the default); --what growth measures how time grows with n, k
    and P; --what parts tells where the time goes and how few operations and bytes it could be;
    --what step times the trainer's GAF step of k microbatches, with --microbatches and
    --microbatch-size, and --what rules that of every rule; --what watch times a loop of your own
    that is watched, --what ranks a decision of many ranks, and --what sweep trials of a sweep that
    are trained together. Each has a --help of its own.
    """

    models: tuple[str, ...] = ("resnet18", "vit", "gpt", "cnn")
    """Networks: resnet18 (GroupNorm, 3x32x32), vit (64 patches), gpt (64 tokens), cnn or mlp."""
    samples: tuple[int, ...] = (16, 64, 128)
    """n, the numbers of samples."""
    microbatches: tuple[str, ...] = ("8x2", "16x4", "4x32")
    """k x u: numbers of microbatches and samples in each."""
    engines: tuple[str, ...] = ("loop", "vmap", "ghost")
    """Engines: loop, vmap, ghost or auto; ghost:bf16 and ghost:float64 set the precision, and
    ghost:whole leaves out the matrices of the layers."""
    peers: tuple[str, ...] = peer_names()
    """Other libraries: opacus, torchjd or backpack; those that are not installed are left out."""
    repeats: int = 21
    """Timed turns."""
    limit: float = 20.0
    """An engine that takes more than this many times the plain pass to warm up is not timed."""
    threads: int = 1
    """Processor threads."""
    device: str = "cpu"
    """cpu or cuda."""
    seed: int = 0
    """Seed of weights and samples."""
    output: str = "runs/cost"
    """Folder of table and figures."""


def measure_engine_cost(
    settings: EngineCostSettings, keep: Callable[[pd.DataFrame], Any] = lambda table: None
) -> pd.DataFrame:
    """Measure every network at every size.

    Args:
        settings: The settings.
        keep: Called with the table so far whenever a network and size is done.

    Returns:
        One row a model, size and method: `k`, `u`, `n`, `parameters`; `base`, the method that it
        is compared with; `seconds` and `ratio` (medians with quartiles), `memory` (peak extra
        bytes) and `memory_ratio`; `floor`, the least ratio by FLOP count; `error`, the relative
        error of the first rows of the Gramian; `note`, what the reader should know, such as why a
        number is missing.

    Raises:
        UserError: If a setting is wrong.
    """
    import pandas as pd

    shapes = [(n, 1) for n in settings.samples] + [_shape(text) for text in settings.microbatches]
    _check(settings, shapes)
    rows: list[dict[str, Any]] = []
    cells = [(model, *shape) for model in settings.models for shape in shapes]
    turns = len(cells) * (WARM_UPS + settings.repeats)
    with using_threads(settings.threads), tqdm(total=turns, delay=2.0, leave=False) as bar:
        for model, k, u in cells:
            bar.set_description(f"{model} {k}x{u}")
            rows += _measure_cell(model, k, u, settings, bar.update)
            keep(pd.DataFrame(rows))
    return pd.DataFrame(rows)


def _measure_cell(
    model: str, k: int, u: int, settings: EngineCostSettings, tick: Tick
) -> list[dict[str, Any]]:
    """Measure one network at one size, all methods side by side."""
    case = make_case(model, k * u, device=settings.device, seed=settings.seed)
    calls = _calls(case, k, settings)
    bases = {name: AVERAGING if name == GAF_STEP else PLAIN for name in calls}
    bases[AVERAGING] = AVERAGING
    warm = warm_up(calls, bases, settings.limit, settings.device, tick)
    errors = relative_errors(case, k, warm.results)
    notes = {name: _note(name, result, errors.get(name)) for name, result in warm.results.items()}
    notes |= warm.notes
    kept = {name: calls[name] for name in warm.results}
    warm.results.clear()
    seconds = take_turns(kept, settings.repeats, settings.device, tick)
    memory = {name: peak_extra_bytes(call, settings.device) for name, call in kept.items()}
    floor = flop_floor(case, k)
    numbers = sum(p.numel() for p in case.parameters)
    rows: list[dict[str, Any]] = []
    for name in calls:
        row: dict[str, Any] = {"model": model, "k": k, "u": u, "n": case.n, "parameters": numbers}
        row |= {"method": name, "base": bases[name]}
        row |= _costs(name, bases[name], seconds, memory)
        row |= {"floor": _floor_of(name, floor.gramian, floor.step), "error": errors.get(name)}
        rows.append(row | {"note": notes[name]})
    return rows


def _calls(case: Case, k: int, settings: EngineCostSettings) -> dict[str, Call]:
    """Make everything that takes turns; each base before what is compared with it."""
    calls = {PLAIN: plain_pass(case)}
    for engine in settings.engines:
        calls[engine] = engine_gramian(case, k, engine)
    if k == case.n:
        missing = missing_peers(settings.peers)
        for peer in settings.peers:
            if peer not in missing:
                calls[peer] = peer_gramian(peer, case)
        calls |= {AVERAGING: averaging_step(case), GAF_STEP: gaf_step(case)}
    return calls


def _note(name: str, result: Any, error: float | None) -> str:
    """Say which engine did it, where the name does not, and whether its result is off."""
    parts = []
    if isinstance(result, Gramian):
        if not name.startswith(result.engine):
            parts.append(f"measured by {result.engine}")
        parts += result.notes
    # Written so that a NaN is inexact too.
    if error is not None and not error < _EXACT:
        parts.append(f"inexact: relative error {error:.2g}")
    return "; ".join(parts)


def _costs(
    name: str, base: str, seconds: Mapping[str, np.ndarray], memory: Mapping[str, int]
) -> dict[str, float | None]:
    if name not in seconds:
        return {}
    return {
        **quartiles("seconds", seconds[name]),
        **quartiles("ratio", seconds[name] / seconds[base]),
        "memory": memory[name],
        "memory_ratio": memory[name] / memory[base],
    }


def _floor_of(name: str, gramian_floor: float, step_floor: float) -> float | None:
    if name in (PLAIN, AVERAGING):
        return None
    return step_floor if name == GAF_STEP else gramian_floor


def _shape(text: str) -> tuple[int, int]:
    k, _, u = text.partition("x")
    if not (k.isdecimal() and u.isdecimal() and int(k) and int(u)):
        raise UserError(
            "--microbatches takes sizes such as 8x2, microbatches x samples in each, "
            f"but found '{text}'."
        )
    return int(k), int(u)


def _check(settings: EngineCostSettings, shapes: list[tuple[int, int]]) -> None:
    check_turns(settings.repeats, settings.limit, settings.device, settings.threads)
    check_cases(settings.models)
    check_engines(settings.engines)
    missing_peers(settings.peers)
    if not shapes or min(k for k, _ in shapes) < 2:
        raise UserError(
            "cost compares at least 2 samples or microbatches with each other, but found "
            f"samples={settings.samples} and microbatches={settings.microbatches}."
        )
