"""One page about a model's gradients: agreement, layers, batch size, threshold, samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from gafscope import geometry, metrics
from gafscope.aggregation import GAF
from gafscope.analyses.answers import SINGLE
from gafscope.analyses.diagnosis import Diagnosis
from gafscope.analyses.purity import purity
from gafscope.analyses.ranking import (
    Ranking,
    check_samples,
    check_true_targets,
    flipped_labels,
    frozen_statistics,
    rank_samples,
)
from gafscope.calibration import Curve, calibrate, predict_curve
from gafscope.calibration.microbatches import MINIMUM_ROWS, draw_microbatches
from gafscope.errors import UserError
from gafscope.gradients import Gramian, Loss, gramian
from gafscope.gradients.problem import batch_size
from gafscope.metrics import Estimate
from gafscope.metrics.resampling import estimate, interval, mean_of_pairs, without_interval
from gafscope.metrics.signal import signal_share

_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
# Points of the predicted curve.
_POINTS = 30


def diagnose(
    model: nn.Module,
    loss: Loss,
    data: Any,
    *,
    microbatch_size: int,
    microbatches: int = 2,
    true_targets: Tensor | None = None,
    false_accept: float = 0.05,
    samples: int = 2000,
    seed: int = 0,
    memory_budget: int | None = None,
    progress: bool = True,
) -> Diagnosis:
    """Answer, for a model at its present parameters, whether its gradients agree and what follows.

    From up to 64 random disjoint microbatches, and from single samples: mean distance, by layer
    too, noise scale, calibrated threshold, predicted and measured agreement against the microbatch
    size, and a ranking of the samples by disagreement. Where true labels are known, how well that
    ranking finds flipped ones, and what GAF with the calibrated tau accepts.

    Args:
        model: The model; left as it was.
        loss: As in `gramian`.
        data: The training data as one batch: a pytree of tensors with n samples, n >= 8 u.
        microbatch_size: u, samples in a micro-gradient.
        microbatches: k, microbatches of one update, whose batch is k u samples.
        true_targets: (n,) labels known to be right, where `data` is (inputs, class labels).
        false_accept: As in `calibrate`.
        samples: As in `rank_samples`.
        seed: Seed of every draw.
        memory_budget: As in `gramian`.
        progress: Show a bar when it takes more than two seconds.

    Returns:
        Numbers with intervals, tables, and the answers in words.

    Raises:
        UserError: If an argument is out of range or as `calibrate` and `gramian`.

    Example:
        >>> model, loss = nn.Linear(30, 1), lambda model, batch: model(batch).squeeze(1) ** 2
        >>> data = torch.randn(400, 30, generator=torch.Generator().manual_seed(0))
        >>> found = diagnose(model, loss, data, microbatch_size=10)
        >>> sorted(found.layers["layer"]), len(found.ranking.table)
        (['bias', 'weight'], 400)
    """
    if microbatches < 1:
        raise UserError(
            "microbatches is k, the number of microbatches of one update, and must be at least 1, "
            f"but is {microbatches}."
        )
    check_true_targets(data, true_targets)
    n, u = batch_size(data), microbatch_size
    check_samples(samples, n)
    sizes = [size for size in _sizes(u) if size == u or size * MINIMUM_ROWS <= n]
    measure = partial(_microbatch_gramian, model, loss, data, seed=seed, budget=memory_budget)
    find_tau = partial(
        calibrate, model, loss, data, false_accept=false_accept, memory_budget=memory_budget
    )
    steps = len(sizes) + 3
    with tqdm(total=steps, desc="diagnose", delay=2.0, leave=False, disable=not progress) as bar:
        calibration = find_tau(microbatch_size=u, seed=seed)
        bar.update()
        grams, drawn = {}, {}
        for size in sizes:
            grams[size], drawn[size] = measure(size, layers=size == u)
            bar.update()
        ranking, notes = _rank(model, loss, data, true_targets, samples, seed, memory_budget)
        bar.update()
        pure = None
        if true_targets is not None:
            flipped = flipped_labels(data, true_targets).double()
            shares = flipped[drawn[u]].reshape(-1, u).mean(1)
            pure = _purity(f"microbatches of {u}", grams[u], shares, calibration.tau, microbatches)
            if ranking is not None:
                with frozen_statistics(model):
                    tau = find_tau(microbatch_size=1, seed=seed).tau
                shares = flipped[ranking.indices]
                each = _purity(SINGLE, ranking.gramian, shares, tau, u)
                pure = pd.concat([pure, each], ignore_index=True)
        bar.update()
    curve = predict_curve(grams[u], u, _grid(sizes))
    return Diagnosis(
        samples=n,
        microbatch_size=u,
        microbatches=microbatches,
        estimates=_estimates(grams[u], u, calibration.tau),
        layers=_layers(grams[u]),
        calibration=calibration,
        curve=curve,
        measured=_points(grams, curve),
        spectrum=metrics.spectrum(grams[u]),
        ranking=ranking,
        separation=None if ranking is None else ranking.separation(),
        purity=pure,
        notes=tuple(dict.fromkeys((*calibration.notes, *grams[u].notes, *notes))),
    )


def _sizes(microbatch_size: int) -> list[int]:
    return sorted({max(round(factor * microbatch_size), 1) for factor in _FACTORS})


def _grid(sizes: list[int]) -> list[int]:
    """Spread sizes evenly on a logarithmic axis, the measured ones among them."""
    first, last = math.log(sizes[0]), math.log(sizes[-1])
    steps = (first + (last - first) * i / _POINTS for i in range(_POINTS + 1))
    return sorted({*sizes, *(round(math.exp(step)) for step in steps)})


def _microbatch_gramian(
    model: nn.Module,
    loss: Loss,
    data: Any,
    size: int,
    *,
    layers: bool,
    seed: int,
    budget: int | None,
) -> tuple[Gramian, Tensor]:
    """Measure up to 64 random disjoint microbatches; give also which samples they hold."""
    generator = torch.Generator().manual_seed(seed)
    numbered = data, torch.arange(batch_size(data))
    (batch, drawn), k = draw_microbatches(numbered, size, generator)
    found = gramian(model, loss, batch, k, layers=layers, memory_budget=budget, seed=seed)
    on_cpu = {name: matrix.cpu() for name, matrix in found.layers.items()}
    return Gramian(found.matrix.cpu(), on_cpu, found.engine, found.notes), drawn


def _rank(
    model: nn.Module,
    loss: Loss,
    data: Any,
    true_targets: Tensor | None,
    samples: int,
    seed: int,
    budget: int | None,
) -> tuple[Ranking | None, tuple[str, ...]]:
    """Rank single samples; where they have no gradients of their own, say why."""
    try:
        ranking = rank_samples(
            *(model, loss, data),
            true_targets=true_targets,
            samples=samples,
            seed=seed,
            memory_budget=budget,
        )
    except UserError as error:
        return None, (f"No ranking of single samples: {error}",)
    return ranking, (*ranking.gramian.notes, *ranking.notes)


def _purity(
    level: str, gram: Gramian, flipped: Tensor, tau: float, microbatches: int
) -> pd.DataFrame:
    group = min(max(microbatches, 2), gram.k)
    table = purity(gram, flipped, GAF(tau), microbatches=group)
    table.insert(0, "level", level)
    return table.assign(tau=tau)


def _estimates(gram: Gramian, u: int, tau: float) -> dict[str, Estimate]:
    return {
        "mean_distance": metrics.mean_distance(gram),
        "fraction_opposed": metrics.fraction_opposed(gram),
        "acceptance": _acceptance(gram, tau),
        "noise_scale": metrics.noise_scale(gram, u),
        "least_noise_scale": _least_noise_scale(gram, u),
        "effective_dimension": metrics.effective_dimension(gram),
        "outlier_directions": metrics.outlier_directions(gram),
    }


def _acceptance(gram: Gramian, tau: float) -> Estimate:
    """Give the share of pairs within tau; as for opposed pairs, rare ones bear no interval."""
    finite = geometry.finite_rows(gram.matrix)
    distances = geometry.cosine_distance(gram.matrix[finite][:, finite])
    within = mean_of_pairs((distances <= tau).double())
    n = len(within.without)
    pairs = n * (n - 1) / 2
    few = min(float(within.value), 1 - float(within.value)) * pairs
    if 2 * few < n:
        return without_interval(float(within.value), n, "no interval: too few pairs of a kind")
    return estimate(within, "", bounds=(0.0, 1.0))


def _least_noise_scale(gram: Gramian, u: int) -> Estimate:
    """Give the lower end of the noise scale's interval, which exists where the upper does not."""
    finite = geometry.finite_rows(gram.matrix)
    matrix = gram.matrix[finite][:, finite]
    _, high = interval(signal_share(matrix))
    unknown = math.nan if math.isnan(high) else math.inf
    least = u * max(1 / high - 1, 0.0) if high > 0 else unknown
    return without_interval(least, len(matrix), "lower end of a 95% interval")


def _layers(gram: Gramian) -> pd.DataFrame:
    total = gram.matrix.diagonal().nansum()
    rows = [
        {
            "layer": name,
            "distance": found.value,
            "distance_low": found.low,
            "distance_high": found.high,
            "share": float(gram.layers[name].diagonal().nansum() / total),
        }
        for name, found in metrics.by_layer(metrics.mean_distance, gram).items()
    ]
    return pd.DataFrame(rows).sort_values("distance", ascending=False, ignore_index=True)


def _points(grams: Mapping[int, Gramian], curve: Curve) -> pd.DataFrame:
    """Put the agreement measured at each size beside what was predicted."""
    predicted = curve.table.set_index("u")
    rows = []
    for size, gram in grams.items():
        found = metrics.cosine_stiffness(gram)
        rows.append(
            {
                "u": size,
                "cosine": found.value,
                "cosine_low": found.low,
                "cosine_high": found.high,
                "rows": found.n,
                "predicted": predicted.loc[size, "cosine"],
                "predicted_low": predicted.loc[size, "low"],
                "predicted_high": predicted.loc[size, "high"],
            }
        )
    return pd.DataFrame(rows)
