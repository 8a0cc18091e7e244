"""Samples ranked by how much their gradients disagree with the others, to find wrong labels.

Shape legend: n samples ranked, one gradient each; c classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from gafscope import geometry
from gafscope.aggregation.selection import distances_to_others
from gafscope.analyses.separation import separation
from gafscope.calibration.microbatches import take
from gafscope.calibration.permutation import is_pair
from gafscope.errors import UserError
from gafscope.gradients import Gramian, Loss, gramian
from gafscope.gradients.isolation import untouched
from gafscope.gradients.problem import batch_size

SCORES = ("class_distance", "mean_distance", "distance_to_sum", "gradient_norm", "loss")
"""What samples can be ranked by; the plain loss, the obvious competitor, comes last."""
_PIECE = 500
_LEAST = 3


@final
@dataclass(frozen=True, eq=False)
class Ranking:
    """Samples, the one that disagrees most first.

    Attributes:
        table: One row a sample: `rank` from 1, `sample` (its index in the data), `label`,
            `true_label` and `flipped` where they are known, and the scores:
            `class_distance`, the mean cosine distance to the samples of the same given label;
            `mean_distance`, that to all others; `distance_to_sum`, the distance to the sum of the
            others' gradients; `gradient_norm`; `loss`.
        ranked_by: The score that decides the rank.
        gramian: Inner products of the gradients, in the order of `indices`.
        indices: (n,), which samples of the data were ranked.
        notes: What the reader should know.
    """

    table: pd.DataFrame
    ranked_by: str
    gramian: Gramian
    indices: Tensor
    notes: tuple[str, ...]

    def separation(self) -> pd.DataFrame | None:
        """Tell how well each score finds the flipped labels, beside the loss.

        Returns:
            As `gafscope.analyses.separation.separation`; None where true labels are not known or
            no label, or every label, is flipped.
        """
        if "flipped" not in self.table or self.table["flipped"].nunique() < 2:
            return None
        known = [name for name in SCORES if name in self.table]
        return separation({name: self.table[name] for name in known}, self.table["flipped"])

    def _repr_html_(self) -> str:
        heading = f"<p>Ranked by {self.ranked_by}. {' '.join(self.notes)}</p>"
        return heading + self.table.head(20).to_html(index=False)


def rank_samples(
    model: nn.Module,
    loss: Loss,
    data: Any,
    *,
    true_targets: Tensor | None = None,
    samples: int = 2000,
    seed: int = 0,
    memory_budget: int | None = None,
) -> Ranking:
    """Rank samples by the disagreement of their gradients with those of the others.

    The rank goes by the mean cosine distance to the samples with the same given label, where the
    data are pairs (inputs, class labels); else by that to all others. Every other sample counts
    alike there. In the plain sum of the others, which GAF looks at, the largest gradients count
    most, and these are often the wrong labels' own: on digits with 40% noise the distance to the
    sum tells them no better than chance.

    Args:
        model: The model; left as it was. BatchNorm layers in training mode, which would couple the
            samples, use their running statistics here.
        loss: As in `gramian`; one that averages over the batch is called sample by sample.
        data: A batch, or a whole data set as a batch.
        true_targets: (n,) labels known to be right, to compare the given ones with.
        samples: Rank a random part of this size where there are more; time and memory grow with
            its square.
        seed: Seed of that part and of dropout masks.
        memory_budget: As in `gramian`.

    Returns:
        The ranking; samples whose gradient is not finite come last, with NaN.

    Raises:
        UserError: If fewer than 3 samples are asked for or there, the true labels do not fit, or
            as `gramian`.

    Example:
        >>> inputs = torch.tensor([[1.0, 0.0], [1.0, 0.2], [1.0, -0.2], [1.0, 0.1]])
        >>> data = inputs, torch.tensor([0, 0, 1, 0])  # the third label is wrong
        >>> criterion = lambda model, batch: nn.functional.cross_entropy(
        ...     model(batch[0]), batch[1], reduction="none"
        ... )
        >>> found = rank_samples(nn.Linear(2, 2), criterion, data, samples=4)
        >>> found.table["mean_distance"].idxmax() == found.table["sample"].tolist().index(2)
        True
    """
    n = batch_size(data)
    check_samples(samples, n)
    check_true_targets(data, true_targets)
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randperm(n, generator=generator)[:samples].sort().values
    part = take(data, indices)
    with frozen_statistics(model) as notes:
        found = gramian(*(model, loss, part), layers=False, memory_budget=memory_budget, seed=seed)
        losses = _losses(model, loss, part)
    table = pd.DataFrame({"sample": indices.numpy()} | _labels(part, true_targets, indices))
    by_class = _class_labels(part)
    table = table.assign(**_scores(found.matrix.cpu(), by_class), loss=losses.numpy())
    ranked_by = "mean_distance" if by_class is None else "class_distance"
    table = table.sort_values([ranked_by, "loss"], ascending=False, kind="stable")
    table.insert(0, "rank", range(1, len(table) + 1))
    if samples < n:
        notes.append(f"A random part of {samples} of {n} samples was ranked.")
    missing = int((~geometry.finite_rows(found.matrix)).sum())
    if missing:
        notes.append(f"{missing} samples have a gradient that is not finite; they come last.")
    return Ranking(table.reset_index(drop=True), ranked_by, found, indices, tuple(notes))


def check_samples(samples: int, n: int) -> None:
    """Refuse to rank too few samples.

    Args:
        samples: How many to rank.
        n: How many there are.

    Raises:
        UserError: If there are fewer than 3 to rank.
    """
    if min(samples, n) < _LEAST:
        raise UserError(
            f"Ranking compares each sample with the others and needs at least {_LEAST} samples, "
            f"but {samples} of {n} are to be ranked; give more."
        )


def check_true_targets(data: Any, true_targets: Tensor | None) -> None:
    """Refuse true labels that cannot be compared with the given ones.

    Args:
        data: The batch.
        true_targets: The labels; None where they are not known.

    Raises:
        UserError: If the data are no pair with class labels, or the shapes differ.
    """
    if true_targets is None:
        return
    targets = _class_labels(data)
    if targets is None:
        raise UserError(
            "true_targets are compared with the given class labels, so the data must be a pair "
            "(inputs, targets) whose targets are integers of shape (n,); leave true_targets out."
        )
    if not isinstance(true_targets, Tensor) or true_targets.shape != targets.shape:
        found = getattr(true_targets, "shape", type(true_targets).__name__)
        raise UserError(
            f"true_targets must be one label for each of the {len(targets)} samples, a tensor of "
            f"shape ({len(targets)},), but got {found if isinstance(found, str) else tuple(found)}."
        )


def flipped_labels(data: Any, true_targets: Tensor) -> Tensor:
    """Tell which given labels are wrong.

    Args:
        data: `(inputs, targets)`, as `check_true_targets` wants it.
        true_targets: (n,).

    Returns:
        (n,) bool on the CPU.
    """
    return data[1].cpu() != true_targets.cpu()


def _class_labels(data: Any) -> Tensor | None:
    if not is_pair(data) or not isinstance(data[1], Tensor):
        return None
    targets = data[1]
    whole = targets.ndim == 1 and not targets.is_floating_point() and not targets.is_complex()
    return targets.cpu() if whole else None


def _labels(part: Any, true_targets: Tensor | None, indices: Tensor) -> dict[str, Any]:
    given = _class_labels(part)
    if given is None:
        return {}
    if true_targets is None:
        return {"label": given.numpy()}
    true = true_targets.cpu()[indices]
    return {
        "label": given.numpy(),
        "true_label": true.numpy(),
        "flipped": (given != true).numpy(),
    }


def _scores(matrix: Float64[Tensor, "n n"], labels: Tensor | None) -> dict[str, Any]:
    finite = geometry.finite_rows(matrix)
    products = torch.where(finite[:, None] & finite[None, :], matrix, 0.0)
    distances = geometry.cosine_distance(matrix).nan_to_num(nan=0.0)
    distances.fill_diagonal_(0.0)
    scores = {"mean_distance": _mean_to(distances, finite, None)}
    if labels is not None:
        scores = {"class_distance": _mean_to(distances, finite, labels)} | scores
    scores["distance_to_sum"] = distances_to_others(products, finite)
    scores["gradient_norm"] = torch.where(finite, products.diagonal().sqrt(), math.nan)
    return {name: values.numpy() for name, values in scores.items()}


def _mean_to(
    distances: Float64[Tensor, "n n"], finite: Tensor, labels: Tensor | None
) -> Float64[Tensor, " n"]:
    """Average the distances to the other finite samples, of the same label where there are any."""
    groups = torch.zeros(len(finite), dtype=torch.int64)
    if labels is not None:
        groups = torch.unique(labels, return_inverse=True)[1]
    member = nn.functional.one_hot(groups).double() * finite[:, None]
    sums = (distances @ member).gather(1, groups[:, None]).squeeze(1)
    others = member.sum(0)[groups] - 1
    return torch.where(finite & (others > 0), sums / others, math.nan)


def _losses(model: nn.Module, loss: Loss, part: Any) -> Float64[Tensor, " n"]:
    """Give each sample's loss; one at a time where the loss averages."""
    n, found = batch_size(part), []
    with untouched(model), torch.no_grad():
        each = n == 1 or loss(model, take(part, torch.arange(2))).ndim == 1
        size = _PIECE if each else 1
        for start in range(0, n, size):
            piece = take(part, torch.arange(start, min(start + size, n)))
            found.append(loss(model, piece).detach().double().cpu().reshape(-1))
    return torch.cat(found)


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[list[str]]:
    """Let BatchNorm use its running statistics, so that samples have gradients of their own.

    Args:
        model: The model; put back after the block.

    Yields:
        A list with the note that says so, or empty where there is no BatchNorm in training mode.
    """
    coupling = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.training
        and module.running_mean is not None
    ]
    for module in coupling:
        module.training = False
    note = "BatchNorm, which couples the samples, used its running statistics for single samples."
    try:
        yield [note] if coupling else []
    finally:
        for module in coupling:
            module.training = True
