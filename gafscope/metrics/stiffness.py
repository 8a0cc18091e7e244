"""Stiffness: does a step for one row help another? Over all pairs, and by pair of classes.

Shape legend: n finite rows, c classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch

from gafscope import geometry
from gafscope.errors import UserError
from gafscope.metrics.estimate import Estimate
from gafscope.metrics.resampling import estimate, mean_of_pairs
from gafscope.metrics.signs import estimate_of_signs
from gafscope.metrics.source import Source, finite_gramian, finite_part

if TYPE_CHECKING:
    import pandas as pd


def sign_stiffness(source: Source, *, layer: str | None = None) -> Estimate:
    """Average `sign <g_i, g_j>` over all pairs of rows (Fort et al. 2019, arXiv 1901.09491).

    The interval is the delete-one jackknife's, withheld where one sign is rare as for
    `fraction_opposed`.

    Args:
        source: Gramian or gradients, at least 2 finite rows.
        layer: A parameter's name, or None for the whole model.

    Returns:
        A number in [-1, 1]: 1 when a small step for any row lowers the loss of every other.

    Raises:
        UserError: If there is no such layer, or there are too few rows.
    """
    matrix, note = finite_gramian(source, layer, "sign_stiffness", 2)
    return estimate_of_signs(matrix.sign(), matrix, note, bounds=(-1.0, 1.0))


def cosine_stiffness(source: Source, *, layer: str | None = None) -> Estimate:
    """Average `cos(g_i, g_j)` over all pairs of rows (Fort et al. 2019, arXiv 1901.09491).

    It is 1 less `mean_distance`, and its interval likewise.

    Args:
        source: Gramian or gradients, at least 2 finite rows.
        layer: A parameter's name, or None for the whole model.

    Returns:
        A number in [-1, 1]; a zero row counts as orthogonal.

    Raises:
        UserError: If there is no such layer, or there are too few rows.
    """
    matrix, note = finite_gramian(source, layer, "cosine_stiffness", 2)
    cosines = mean_of_pairs(1 - geometry.cosine_distance(matrix))
    return estimate(cosines, note, bounds=(-1.0, 1.0))


def stiffness_by_class(
    source: Source, classes: Iterable[object], *, layer: str | None = None
) -> pd.DataFrame:
    """Average sign and cosine over the pairs of rows from classes a and b (arXiv 1901.09491).

    Args:
        source: Gramian or gradients of rows that hold one class each, e.g. one sample.
        classes: The class of each of the k rows: a tensor, an array or a list.
        layer: A parameter's name, or None for the whole model.

    Returns:
        One line a pair of classes a <= b: `class_a, class_b, sign, cosine, pairs`, the last the
        number of pairs of different rows; NaN where there is none. Rows that are not finite are
        left out.

    Raises:
        UserError: If there is not one class a row, there is no such layer, or there are fewer than
            2 finite rows.

    Example:
        >>> from gafscope.gradients import GradientRows
        >>> rows = GradientRows({"w": torch.tensor([[1.0, 0], [2, 0], [-1, 0]])})
        >>> print(stiffness_by_class(rows, [3, 3, 7]).to_string(index=False))
         class_a  class_b  sign  cosine  pairs
               3        3   1.0     1.0      1
               3        7  -1.0    -1.0      2
               7        7   NaN     NaN      0
    """
    matrix, finite, _ = finite_part(source, layer, "stiffness_by_class", 2)
    labels = classes.tolist() if isinstance(classes, torch.Tensor | np.ndarray) else list(classes)
    if len(labels) != source.k:
        raise UserError(
            f"stiffness_by_class takes the class of each row, {source.k} of them, but got "
            f"{len(labels)}."
        )
    kept = np.asarray(labels)[finite.numpy()]
    names, index = np.unique(kept, return_inverse=True)
    member = torch.nn.functional.one_hot(torch.from_numpy(index), len(names)).double()
    cosines = 1 - geometry.cosine_distance(matrix)
    others = 1 - torch.eye(len(matrix), dtype=torch.float64)
    counts, signs, sums = (
        member.T @ (values * others) @ member
        for values in (torch.ones_like(matrix), matrix.sign(), cosines)
    )
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "class_a": names[a],
                "class_b": names[b],
                "sign": float(signs[a, b] / counts[a, b]),
                "cosine": float(sums[a, b] / counts[a, b]),
                "pairs": int(counts[a, b]) // (2 if a == b else 1),
            }
            for a in range(len(names))
            for b in range(a, len(names))
        ]
    )
