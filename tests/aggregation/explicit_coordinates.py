"""Coordinate-wise rules on one column of numbers at a time, in plain Python: slow and obvious."""

from __future__ import annotations

import math
import statistics

import numpy as np


def finite(rows: np.ndarray) -> np.ndarray:
    return rows[np.isfinite(rows).all(1)]


def sign_agreement(rows: np.ndarray, share: float) -> np.ndarray:
    update = []
    for column in finite(rows).T.tolist():
        signs = [(x > 0) - (x < 0) for x in column]
        kept = abs(sum(signs)) / len(column) >= share - 1e-12
        update.append(sum(column) / len(column) if kept else 0.0)
    return np.array(update)


def sand_mask(rows: np.ndarray, share: float, sharpness: float) -> np.ndarray:
    """One parameter's tensor."""
    masks, means = [], []
    for column in finite(rows).T.tolist():
        signs = [(x > 0) - (x < 0) for x in column]
        excess = abs(sum(signs)) / len(column) - share
        variance = statistics.variance(column)
        masks.append(max(0.0, math.tanh(sharpness / variance * excess)))
        means.append(sum(column) / len(column))
    average = sum(masks) / len(masks)
    return np.array([m * g / average if m else 0.0 for m, g in zip(masks, means, strict=True)])


def trimmed_mean(rows: np.ndarray, b: int) -> np.ndarray:
    columns = [sorted(column)[b : len(column) - b] for column in finite(rows).T.tolist()]
    return np.array([sum(column) / len(column) for column in columns])


def median(rows: np.ndarray) -> np.ndarray:
    return np.array([statistics.median(column) for column in finite(rows).T.tolist()])
