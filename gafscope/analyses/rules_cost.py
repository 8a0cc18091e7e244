"""What each rule costs over averaging and over GAF, measured side by side in one process."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD
from tqdm import tqdm

from gafscope import geometry
from gafscope.aggregation import CalibratedGAF, RowRule, Rule
from gafscope.analyses.cost_turns import (
    WARM_UPS,
    check_turns,
    quartiles,
    take_turns,
    timed,
    using_threads,
    warm_up,
)
from gafscope.analyses.rule_specs import RuleSpec, parse_rules
from gafscope.errors import UserError
from gafscope.gradients import Gramian, supervised
from gafscope.models import build_model
from gafscope.trainer import Trainer
from gafscope.trainer.calibration import Calibration

if TYPE_CHECKING:
    import pandas as pd

MEAN, GAF = "mean", "gaf"
TARGET_K, TARGET = 8, 1.02
STREAMS, HOLDS, ROWS = "streams", "holds k gradients", "needs rows"
# At tau = 2 every step is taken; a rejected one is cheaper.
_ALL = 2.0
_NUMBERS, _LOOPS = 4096, 20


@final
@dataclass(frozen=True)
class RulesCostSettings:
    """Time each rule's decision and its whole training step against averaging and GAF.

    Steps are timed at tau = 2, where rules with a threshold do all their work and every step is
    taken. All rules take turns, and a ratio is the median over the turns. The decision alone is
    timed on a Gramian of independent rows, with tau at their median distance.
    """

    rules: tuple[str, ...] = (
        "gaf:anchor=best",
        "halving-gaf",
        "calibrated-gaf",
        "adaptive-gaf:target_acceptance=0.99",
        "clique-gaf",
        "leave-one-out",
        "soft-gaf",
        "inverse-variance",
        "top-m:m=2",
        "k-means",
        "l2-threshold:threshold=100",
        "mahalanobis-threshold:threshold=100",
        "geometric-median",
        "krum",
        "multi-krum",
        "sign-agreement:share=0",
        "sand-mask:share=0",
        "trimmed-mean",
        "coordinate-median",
        "by-layer:rule=gaf",
        "by-bucket:rule=gaf",
    )
    """Rules, each NAME or NAME:OPTION=VALUE,OPTION=VALUE. mean and gaf are always there."""
    microbatches: tuple[int, ...] = (2, 8, 32)
    """k, microbatches a step, one table each."""
    microbatch_size: int = 16
    """u, samples a microbatch."""
    model: str = "resnet18"
    """Network: mlp, cnn, resnet18, resnet34 or vit."""
    stem: str = "imagenet"
    """Stem of a ResNet: imagenet, as in the paper, or cifar."""
    classes: int = 100
    """Classes of the random 3x32x32 images."""
    repeats: int = 7
    """Timed turns."""
    limit: float = 50.0
    """A rule that takes more times averaging's step is not timed further."""
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


def measure_rules_cost(settings: RulesCostSettings) -> pd.DataFrame:
    """Time decisions and steps.

    Args:
        settings: The settings.

    Returns:
        One row a k and rule: `k`, `rule`, `way` (whether it streams, holds k gradients or needs
        rows), `decision_us` (microseconds; NaN for a rule that needs rows), `seconds` (median
        step), `ratio_to_mean` and `ratio_to_gaf` (medians over the turns), each of the four but
        seconds with its quartiles, `stepped` (share of the timed steps that updated),
        `calibrating` (of CalibratedGAF: what its calibrations take beside all steps), `note`.

    Raises:
        UserError: If a setting is wrong.
    """
    import pandas as pd

    threads = settings.threads or torch.get_num_threads()
    check_turns(settings.repeats, settings.limit, settings.device, threads)
    if not settings.microbatches or min(settings.microbatches) < 2 or settings.microbatch_size < 1:
        raise UserError(
            "cost needs microbatches of at least 2 and a microbatch_size of at least 1, but found "
            f"{settings.microbatches} and {settings.microbatch_size}."
        )
    specs = {spec.label: spec for spec in parse_rules((MEAN, GAF, *settings.rules))}
    for spec in specs.values():
        spec.build(_ALL)
    with using_threads(threads):
        parts = [_measure(settings, specs, k) for k in settings.microbatches]
    return pd.DataFrame([row for part in parts for row in part])


def target_sentence(table: pd.DataFrame) -> str:
    """Say which weightings keep to the target at k = 8.

    Args:
        table: From `measure_rules_cost`.

    Returns:
        A sentence; nothing where k = 8 was not measured.
    """
    part = table[(table["k"] == TARGET_K) & (table["way"] != ROWS) & table["seconds"].notna()]
    part = part[~part["rule"].isin([MEAN, GAF])]
    if part.empty:
        return ""
    over = part[part["ratio_to_gaf"] > TARGET]
    missed = ", ".join(
        f"{rule} ({ratio:.3f})"
        for rule, ratio in zip(over["rule"], over["ratio_to_gaf"], strict=True)
    )
    share = (part["decision_us"] / 1e6 / part["seconds"]).max()
    return (
        f"Target for weightings at k = {TARGET_K}, at most {TARGET} of GAF's step: met by "
        f"{len(part) - len(over)} of {len(part)}"
        + (f", missed by {missed}" if missed else "")
        + f". The decision itself is at most {share:.2%} of a step; what a rule that does not "
        "stream costs beside it is holding k gradients, and their inner products."
    )


def _measure(
    settings: RulesCostSettings, specs: Mapping[str, RuleSpec], k: int
) -> list[dict[str, Any]]:
    model, batch = _problem(settings, k)
    trainers = {
        label: _trainer(copy.deepcopy(model), spec.build(_ALL), k) for label, spec in specs.items()
    }
    stepped: dict[str, list[bool]] = {label: [] for label in specs}

    def step(label: str) -> None:
        row, _ = trainers[label].advance(batch)
        stepped[label].append(row["stepped"])

    calls: dict[str, Callable[[], Any]] = {
        label: (lambda label=label: step(label)) for label in specs
    }
    turns = settings.repeats + WARM_UPS
    with tqdm(total=turns, desc=f"cost, k={k}", delay=2.0, leave=False) as bar:
        warm = warm_up(
            calls, dict.fromkeys(calls, MEAN), settings.limit, settings.device, bar.update
        )
        calls = {label: call for label, call in calls.items() if label not in warm.notes}
        seconds = take_turns(calls, settings.repeats, settings.device, bar.update)
    rows = []
    for label, spec in specs.items():
        row: dict[str, Any] = {"k": k, "rule": label, "way": _way(trainers[label].aggregator)}
        row |= quartiles("decision_us", _decisions(spec, k, settings.repeats))
        if label in seconds:
            row["seconds"] = float(np.median(seconds[label]))
            row |= quartiles("ratio_to_mean", seconds[label] / seconds[MEAN])
            row |= quartiles("ratio_to_gaf", seconds[label] / seconds[GAF])
            row["stepped"] = float(np.mean(stepped[label][WARM_UPS:]))
            row["calibrating"] = _calibrating(settings, trainers[label], batch, row["seconds"])
        rows.append(row | {"note": warm.notes.get(label, "")})
    return rows


def _calibrating(settings: RulesCostSettings, trainer: Trainer, batch: Any, step: float) -> float:
    """Give the time of a calibration over that of the steps from one to the next."""
    rule = trainer.aggregator
    if not isinstance(rule, CalibratedGAF):
        return math.nan
    trainer.step = 0  # a calibration is due
    calibration = Calibration(trainer)
    times = [
        timed(lambda: calibration.before(batch), settings.device)[0]
        for _ in range(WARM_UPS + settings.repeats)
    ]
    return float(np.median(times[WARM_UPS:])) / (rule.every * step)


def _way(rule: Rule) -> str:
    if isinstance(rule, RowRule):
        return ROWS
    return HOLDS if getattr(rule, "fold", None) is None else STREAMS


def _decisions(spec: RuleSpec, k: int, repeats: int) -> np.ndarray:
    """Time a decision on inner products alone, in microseconds; NaN where there is none."""
    rows = torch.randn(k, _NUMBERS, generator=torch.Generator().manual_seed(0)).double()
    gramian = Gramian(rows @ rows.T)
    pairs = torch.triu_indices(k, k, offset=1)
    tau = float(geometry.cosine_distance(gramian.matrix)[pairs[0], pairs[1]].median())
    rule = spec.build(tau)
    if isinstance(rule, RowRule):
        return np.full(repeats, math.nan)

    def decide() -> None:
        for _ in range(_LOOPS):
            rule(gramian)

    try:
        decide()
    except UserError:  # the rule needs more rows; the step's note says so
        return np.full(repeats, math.nan)
    return np.array([1e6 * timed(decide, "cpu")[0] / _LOOPS for _ in range(repeats)])


def _problem(settings: RulesCostSettings, k: int) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
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
    generator = torch.Generator().manual_seed(settings.seed)
    n = k * settings.microbatch_size
    images = torch.randn(n, 3, 32, 32, generator=generator).to(settings.device)
    labels = torch.randint(settings.classes, (n,), generator=generator).to(settings.device)
    return model, (images, labels)


def _trainer(model: nn.Module, rule: Rule, k: int) -> Trainer:
    optimizer = SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=0.01)
    loss = supervised(nn.functional.cross_entropy)
    return Trainer(model, loss, optimizer, aggregator=rule, microbatches=k, record_layers_every=0)
