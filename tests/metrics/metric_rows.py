"""Rows for the tests of metrics."""

from __future__ import annotations

import numpy as np
import torch

from gafscope.gradients import GradientRows


def gradient_rows(rows: np.ndarray | list) -> GradientRows:
    """Cut the rows into two parameters, one of them a matrix."""
    values = torch.as_tensor(np.asarray(rows, dtype=np.float64))
    return GradientRows({"a": values[:, :1], "b": values[:, 1:].reshape(len(values), 1, -1)})


def random_rows(k: int, size: int = 7, signal: float = 0.7, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(k, size)) * np.linspace(2, 0.5, size) + signal * random.normal(
        size=size
    )


class Gaussian:
    """Gaussian rows with covariance diag(i^-decay) and a given share of signal |mu|^2 / E|g|^2."""

    def __init__(self, size: int = 40, decay: float = 0.5, share: float = 0.2, seed: int = 0):
        self.generator = torch.Generator().manual_seed(seed)
        self.variances = torch.arange(1, size + 1, dtype=torch.float64) ** -decay
        direction = self._normal(size)
        length = (self.variances.sum() * share / (1 - share)).sqrt()
        self.mean = direction / direction.norm() * length
        self.share = share

    def draw(self, *shape: int) -> torch.Tensor:
        """Rows of shape (*shape, size)."""
        return self.mean + self._normal(*shape, len(self.mean)) * self.variances.sqrt()

    def _normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)
