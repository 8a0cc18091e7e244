"""How much the microbatches of a run disagree, part by part of the network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gafscope.geometry import mean_pairwise_distance
from gafscope.records import Run

if TYPE_CHECKING:
    import pandas as pd


def layer_distances(run: Run) -> pd.DataFrame:
    """Read the distances by layer that a run has recorded.

    Args:
        run: The run.

    Returns:
        One row a recorded step and layer: `step`, `part` (the parameter's name) and `distance`,
        the mean over the pairs of microbatches.
    """
    import pandas as pd

    rows = [
        {"step": step, "part": name, "distance": mean_pairwise_distance(torch.from_numpy(matrix))}
        for step in run.recorded_steps
        for name, matrix in run.layer_matrices(step).items()
    ]
    return pd.DataFrame(rows, columns=["step", "part", "distance"])
