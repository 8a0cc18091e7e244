"""The recorded Gramians as a page shows them: thinned, rounded, and said in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from jaxtyping import Float64

from gafscope.errors import UserError
from gafscope.geometry import mean_pairwise_distance
from gafscope.records import Run

if TYPE_CHECKING:
    import pandas as pd

_MOST_STEPS = 100
_MOST_NUMBERS = 120_000
_LARGEST_SHOWN = 48
_MOST_LAYERS = 40
_MOST_COLUMNS = 60
_SNAPSHOTS = 6

_Taken = Mapping[int, tuple[float, float]]
"""Step -> accepted microbatches, and 1 where there was an update."""


@final
@dataclass(frozen=True)
class Matrices:
    """Cosine distances at some of the recorded steps.

    Attributes:
        steps: The steps shown, ascending.
        recorded: How many steps were recorded.
        distances: One matrix a step shown, (k, k) in [0, 2].
        sizes: k of each step shown, before large matrices are cut.
        captions: One sentence a step shown.
    """

    steps: list[int]
    recorded: int
    distances: list[Float64[np.ndarray, "k k"]]
    sizes: list[int]
    captions: list[str]

    @property
    def cut(self) -> bool:
        """Whether some matrices are larger than what is shown of them."""
        return any(size > _LARGEST_SHOWN for size in self.sizes)

    @property
    def snapshots(self) -> dict[int, Float64[np.ndarray, "k k"]]:
        """A few of the steps, evenly spread, the first and the last among them."""
        places = spread(len(self.steps), _SNAPSHOTS)
        return {self.steps[place]: self.distances[place] for place in places}

    def data(self) -> dict[str, Any]:
        """Give what the page's script draws from.

        Returns:
            `steps`, `captions`, and `cells`: for each step the lower triangle with its diagonal,
            row after row, in thousandths; None where a gradient was not finite.
        """
        cells = []
        for matrix in self.distances:
            triangle = matrix[np.tril_indices(len(matrix))]
            cells.append([None if math.isnan(x) else round(1000 * x) for x in triangle.tolist()])
        return {"steps": self.steps, "captions": self.captions, "cells": cells}


def spread(count: int, most: int) -> list[int]:
    """Choose places evenly spread over a list, its ends among them.

    Args:
        count: Length of the list.
        most: How many places at most, at least 2.

    Returns:
        Ascending places.

    Example:
        >>> spread(3, 10), spread(100, 4)
        ([0, 1, 2], [0, 33, 66, 99])
    """
    if count <= most:
        return list(range(count))
    return [round(place) for place in np.linspace(0, count - 1, most).tolist()]


def read_matrices(run: Run, scalars: pd.DataFrame, budget: float = 1.0) -> Matrices:
    """Read the whole-model matrices of the recorded steps, as many as a page has room for.

    Args:
        run: The run.
        scalars: Its scalars, numbers only.
        budget: Part of a page's room that there is for them, in (0, 1].

    Returns:
        The matrices; none where none were recorded.

    Raises:
        UserError: If a file of the matrices is damaged.
    """
    try:
        recorded = run.recorded_steps
        if not recorded:
            return Matrices([], 0, [], [], [])
        # Both ends: later macrobatches may be larger than the first.
        k = min(_LARGEST_SHOWN, max(len(run.matrix(recorded[place])) for place in (0, -1)))
        room = int(budget * _MOST_NUMBERS / (k * (k + 1) / 2))
        most = max(2, min(_MOST_STEPS, room))
        steps = [recorded[place] for place in spread(len(recorded), most)]
        whole = [run.cosine_distance(step) for step in steps]
    except (ValueError, OSError) as error:
        raise _damaged(run, error) from error
    decisions = scalars.reindex(columns=["accepted", "stepped"]).astype(float)
    taken = dict(zip(scalars["step"], decisions.itertuples(index=False), strict=True))
    return Matrices(
        steps=steps,
        recorded=len(recorded),
        distances=[matrix[:_LARGEST_SHOWN, :_LARGEST_SHOWN] for matrix in whole],
        sizes=[len(matrix) for matrix in whole],
        captions=[_caption(s, m, taken) for s, m in zip(steps, whole, strict=True)],
    )


def layer_distances(run: Run) -> tuple[pd.DataFrame, int, int]:
    """Average the distance over the pairs, by layer and recorded step.

    Args:
        run: The run.

    Returns:
        A table, layers by steps, in the model's order and of at most 40 layers (those with the
        largest mean distance) and 60 steps; how many layers and how many steps were recorded.

    Raises:
        UserError: If a file of the matrices is damaged.
    """
    import pandas as pd

    try:
        layers = run.layers
        recorded = [s for s in run.recorded_steps if run.layer_matrices(s)] if layers else []
        steps = [recorded[place] for place in spread(len(recorded), _MOST_COLUMNS)]
        columns = {step: _means(run.layer_matrices(step)) for step in steps}
    except (ValueError, OSError) as error:
        raise _damaged(run, error) from error
    table = pd.DataFrame(columns, index=pd.Index(layers), columns=pd.Index(steps), dtype=float)
    largest = table.mean(axis="columns").fillna(-1).nlargest(_MOST_LAYERS).index
    return table[table.index.isin(largest)], len(layers), len(recorded)


def _means(layers: dict[str, Float64[np.ndarray, "k k"]]) -> dict[str, float]:
    return {
        name: mean_pairwise_distance(torch.from_numpy(matrix)) for name, matrix in layers.items()
    }


def _caption(step: int, matrix: Float64[np.ndarray, "k k"], taken: _Taken) -> str:
    """Say a matrix and what was done at its step in one sentence."""
    k = len(matrix)
    pairs = matrix[np.triu_indices(k, 1)]
    known = pairs[np.isfinite(pairs)]
    if not known.size:
        text = f"Step {step:,}: no two finite gradients of {k} to compare"
    elif k == 2:
        text = f"Step {step:,}: cosine distance {known[0]:.3f} between 2 gradients"
    else:
        text = (
            f"Step {step:,}: mean cosine distance {known.mean():.3f} between {k} gradients, "
            f"{known.min():.3f} to {known.max():.3f}"
        )
    accepted, stepped = taken.get(step, (math.nan, math.nan))
    if math.isfinite(accepted):
        text += f"; {int(accepted)} of {k} accepted"
    if math.isfinite(stepped):
        text += ", updated" if stepped else ", no update"
    return f"{text}."


def _damaged(run: Run, error: Exception) -> UserError:
    return UserError(
        f"The matrices of the run in {run.folder} cannot be read ({error}). A file was changed or "
        "damaged after it was written: restore it, or remove the folder 'matrices' there."
    )
