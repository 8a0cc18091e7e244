"""Micro-gradients that agree more or less, with the odd rows among them that training produces."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from gafscope.gradients import GradientRows, Gramian

ODD = ("none", "zeros", "leading zeros", "nan", "inf", "bad first", "one left", "all bad", "mixed")


def cases(count: int) -> Iterator[tuple[np.ndarray, float, str]]:
    """Give (rows, tau, kind of odd rows), the same ones every time."""
    random = np.random.default_rng(0)
    for number in range(count):
        k, size = int(random.integers(2, 33)), int(random.integers(1, 40))
        agreement = random.choice([0.0, 0.3, 1.0, 3.0])
        rows = random.normal(size=(k, size)) + agreement * random.normal(size=size)
        rows *= 10.0 ** random.integers(-4, 5, size=(k, 1)) if number % 3 == 0 else 1.0
        rows *= random.choice([-1, 1], size=(k, 1)) if number % 5 == 0 else 1.0
        kind = ODD[number % len(ODD)]
        _spoil(rows, kind, random)
        yield rows, float(random.choice([0.3, 0.7, 0.9, 0.97, 1.0, 1.05, 1.5])), kind


def _spoil(rows: np.ndarray, kind: str, random: np.random.Generator) -> None:
    k, size = rows.shape
    some = random.random(k) < 0.4
    if kind in ("zeros", "mixed"):
        rows[some] = 0
    if kind == "leading zeros":
        rows[: random.integers(1, k + 1)] = 0
    if kind in ("nan", "mixed"):
        rows[random.random(k) < 0.3, random.integers(size)] = np.nan
    if kind in ("inf", "mixed"):
        rows[random.random(k) < 0.3, random.integers(size)] = random.choice([np.inf, -np.inf])
    if kind == "bad first":
        rows[0] = random.choice([np.nan, np.inf])
    if kind == "one left":
        rows[np.arange(k) != random.integers(k)] = np.nan
    if kind == "all bad":
        rows[:, 0] = np.inf


def gradient_rows(rows: np.ndarray) -> GradientRows:
    """Cut the rows into two parameters, one of them a matrix."""
    values = torch.from_numpy(rows)
    return GradientRows({"a": values[:, :1], "b": values[:, 1:].reshape(len(rows), 1, -1)})


def gramian(rows: np.ndarray) -> Gramian:
    return gradient_rows(rows).gramian()


def flat(update: dict[str, torch.Tensor]) -> np.ndarray:
    return torch.cat([part.flatten() for part in update.values()]).numpy()
