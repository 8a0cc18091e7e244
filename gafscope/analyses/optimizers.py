"""Whether what GAF does depends on the optimizer behind it.

The paper (arXiv 2412.18052) trains with SGD and leaves adaptive and second-order optimizers to
future work. Each optimizer stands here with its own learning rate, by averaging and by GAF, which
decides on gradients before the optimizer sees them, with GAF's yoked control.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from tyro.conf import OmitArgPrefixes

from gafscope.analyses.comparison import SHOWN, compare, points
from gafscope.analyses.conditions import (
    AVERAGING,
    GAF,
    YOKED,
    Condition,
    measure_conditions,
    plain_averaging,
    plan_conditions,
)
from gafscope.analyses.leads import behind_best_checkpoint, check_validated, tally
from gafscope.analyses.presets import all_of_cifar, cifar_part, noisy_digits
from gafscope.analyses.result import Analysis, Conclusion, Measured
from gafscope.analyses.trials import data_name
from gafscope.errors import UserError, unknown_name
from gafscope.trainer import TrainSettings

if TYPE_CHECKING:
    import pandas as pd

PLACE = "optimizer"
log = logging.getLogger("gafscope")
_CHANGES: Mapping[str, Mapping[str, Any]] = {
    "sgd": {"optimizer": "sgd", "momentum": 0.0},
    "heavy-ball": {"optimizer": "heavy-ball"},
    "nesterov": {"optimizer": "sgd"},
    "adam": {"optimizer": "adam"},
    "adamw": {"optimizer": "adamw"},
    "rmsprop": {"optimizer": "rmsprop"},
    "lamb": {"optimizer": "lamb"},
    "shampoo": {"optimizer": "shampoo", "momentum": 0.0},
}
_FROM_LIBRARY = ("lamb", "shampoo")
_LIBRARY = "pytorch_optimizer"


@final
@dataclass(frozen=True)
class OptimizersSettings:
    """Train with each optimizer by averaging, by GAF and by GAF's yoked control.

    sgd is without momentum, nesterov and heavy-ball are SGD with --momentum. lamb and shampoo come
    with the extra `optimizers` (pytorch-optimizer) and are left out where it is missing.
    """

    optimizers: tuple[str, ...] = (
        "sgd=0.3",
        "nesterov=0.05",
        "adam=0.003",
        "adamw=0.003",
        "rmsprop=0.0005",
        "lamb=0.01",
        "shampoo=0.3",
    )
    """Optimizers, each NAME=LEARNING-RATE."""
    adamw_decay: float = 0.1
    """Weight decay of adamw, which is adam without one."""
    seeds: int = 3
    """Seeds of each condition, counted up from --seed."""
    train: OmitArgPrefixes[TrainSettings] = field(default_factory=noisy_digits)
    """How to train; --optimizer and --lr are the study's own."""


def measure(settings: OptimizersSettings) -> Measured:
    """Train with every optimizer that is there, or go on with it.

    Args:
        settings: The settings.

    Returns:
        One run an optimizer, rule or control, and seed.

    Raises:
        UserError: If an optimizer is unknown, has no learning rate, or none is there.
    """
    root = Path(settings.train.run_dir or "runs/optimizers")
    rates = _rates(settings.optimizers)
    conditions = _conditions(settings)
    trained = {condition.place[1] for condition in conditions if condition.place is not None}
    if missing := [name for name in rates if name not in trained]:
        log.warning(
            "Left out: %s. They come with pytorch-optimizer, which is not installed; run "
            "`pip install 'gafscope[optimizers]'` for them.",
            ", ".join(missing),
        )
    shown = next(iter(rates))
    return measure_conditions(conditions, settings.seeds, root, curves_at=shown)


def conclude(settings: OptimizersSettings, runs: pd.DataFrame, curves: pd.DataFrame) -> Conclusion:
    """Average over the seeds and compare optimizer by optimizer.

    Args:
        settings: The settings.
        runs: From `measure`.
        curves: From `measure`; unused.

    Returns:
        Accuracies by optimizer, with paired differences to averaging and to the yoked controls.
    """
    table = compare(runs, PLACE)
    sentences = ["Lead in test accuracy at the end, in points, paired by seed, with 95% intervals."]
    sentences += [
        f"{row[PLACE]}: {points(row, 'over_averaging')} over averaging, "
        f"{points(row, 'over_yoked')} over its yoked control, {row['accepted']:.0%} accepted."
        for row in table[table["rule"] == GAF].to_dict("records")
    ]
    sentences += [tally(table), behind_best_checkpoint(table, PLACE, (AVERAGING, YOKED))]
    trained = set(table[PLACE])
    if missing := [name for name in _rates(settings.optimizers) if name not in trained]:
        sentences.append(f"Not trained, for want of pytorch-optimizer: {', '.join(missing)}.")
    return Conclusion(table, " ".join(sentences), (PLACE, *SHOWN))


def _rates(texts: Sequence[str]) -> dict[str, float]:
    """Read the optimizers and their learning rates."""
    rates = {}
    for text in texts:
        name, _, rate = text.partition("=")
        if name not in _CHANGES:
            raise unknown_name("optimizer", name, _CHANGES)
        try:
            rates[name] = float(rate)
        except ValueError as error:
            raise UserError(
                f"An optimizer is NAME=LEARNING-RATE, as in adam=0.003, but found '{text}'."
            ) from error
        if not 0 < rates[name] < float("inf"):
            raise UserError(f"A learning rate must be positive, but found '{text}'.")
    return rates


def _conditions(settings: OptimizersSettings) -> list[Condition]:
    base = settings.train
    check_validated(base)
    there = importlib.util.find_spec(_LIBRARY) is not None
    conditions = []
    for name, lr in _rates(settings.optimizers).items():
        if name in _FROM_LIBRARY and not there:
            continue
        own = replace(base, rule="gaf", lr=lr, **_CHANGES[name])
        if name == "adamw":
            own = replace(own, weight_decay=settings.adamw_decay)
        mean = plain_averaging(own)
        conditions.append(Condition(data_name(base), AVERAGING, mean, (PLACE, name)))
        conditions.append(Condition(data_name(base), GAF, own, (PLACE, name), (YOKED,)))
    if not conditions:
        raise UserError(
            "There is no optimizer to train with: name one of torch's own, e.g. --optimizers "
            "adam=0.003, or run `pip install 'gafscope[optimizers]'` for lamb and shampoo."
        )
    return conditions


_ON_CIFAR = (
    "sgd=0.05",
    "nesterov=0.01",
    "adam=0.001",
    "adamw=0.001",
    "rmsprop=0.0001",
    "lamb=0.005",
)

OPTIMIZERS = Analysis(
    name="optimizers",
    question="Does what GAF does depend on the optimizer behind it?",
    presets={
        "quick": OptimizersSettings(train=noisy_digits(steps=800)),
        "cifar": OptimizersSettings(optimizers=_ON_CIFAR, seeds=2, train=cifar_part()),
        "gpu": OptimizersSettings(optimizers=_ON_CIFAR, train=all_of_cifar()),
    },
    minutes={
        "quick": "3 minutes on 2 cores",
        "cifar": "7 hours on 2 cores",
        "gpu": "5 hours on one large GPU",
    },
    measure=measure,
    conclude=conclude,
    plan=lambda settings: plan_conditions(_conditions(settings), settings.seeds),
)
