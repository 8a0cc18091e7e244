"""Algorithm 1 and its relatives on explicit vectors, in plain numpy: slow, obvious, independent.

The policy for odd rows, as the design has it: rows that are not finite are passed over; a zero
vector is at distance 1 from everything; the running vector starts at the first other row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Outcome:
    accepted: list[int]
    distances: list[float]
    running: np.ndarray
    step: bool
    update: np.ndarray


def distance(g: np.ndarray, s: np.ndarray) -> float:
    if not g.any() or not s.any():
        return 1.0
    cosine = float(g @ s) / (float(np.sqrt(g @ g)) * float(np.sqrt(s @ s)))
    return min(max(1.0 - cosine, 0.0), 2.0)


def gaf(rows: np.ndarray, tau: float) -> Outcome:
    """Algorithm 1 of arXiv 2412.18052: s += g, c += 1 while the distance is at most tau."""
    s = np.zeros(rows.shape[1])
    distances = [np.nan] * len(rows)
    accepted: list[int] = []
    started = False
    for i, g in enumerate(rows):
        if not np.isfinite(g).all():
            continue
        if started or not g.any():
            distances[i] = distance(g, s)
            if distances[i] > tau:
                continue
        started = started or bool(g.any())
        s = s + g
        accepted.append(i)
    c = len(accepted)
    step = c >= 2
    return Outcome(accepted if step else [], distances, s, step, s / c if step else 0 * s)


def halving(rows: np.ndarray, tau: float) -> Outcome:
    """The released code: the running vector becomes (s + g) / 2 at each acceptance."""
    s = None
    distances = [np.nan] * len(rows)
    accepted: list[int] = []
    started = False
    for i, g in enumerate(rows):
        if not np.isfinite(g).all():
            continue
        if started or not g.any():
            distances[i] = 1.0 if s is None else distance(g, s)
            if distances[i] > tau:
                continue
        started = started or bool(g.any())
        s = g if s is None else (s + g) / 2
        accepted.append(i)
    step = len(accepted) >= 2
    zero = np.zeros(rows.shape[1])
    s = zero if s is None else s
    return Outcome(accepted if step else [], distances, s, step, s if step else zero)


def mean(rows: np.ndarray) -> np.ndarray:
    finite = [g for g in rows if np.isfinite(g).all()]
    return sum(finite) / len(finite) if finite else np.zeros(rows.shape[1])
