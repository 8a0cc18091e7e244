"""Where a sequential rule starts, and in which order it visits the rest.

Algorithm 1 of arXiv 2412.18052 starts at the first micro-gradient, so the outcome depends on the
order of the rows. Its authors propose to try every start and take the largest agreement. From an
anchor that is not simply the first, the other rows are visited from the nearest to the farthest
by cosine distance to the anchor, equal ones by index; zero rows stand at distance 1.
"""

from __future__ import annotations

import hashlib

import numpy as np

from gafscope.aggregation.decision import Decision
from gafscope.aggregation.sequential import Fold, products_to_visit, visit_all
from gafscope.errors import unknown_name
from gafscope.geometry import cosine_distance
from gafscope.gradients import Gramian

ANCHORS = ("first", "random", "best", "worst")


def anchored(fold: Fold, gramian: Gramian, rule: str, anchor: str, seed: int) -> Decision:
    """Run a sequential rule from an anchor that the Gramian itself determines.

    - "random": a finite row that is not zero, drawn by a hash of the seed and of the Gramian's
      bytes, so that a replay of one Gramian draws the same one.
    - "best": the start, of all finite rows that are not zero, from which most rows are accepted;
      among those the smallest mean distance of the accepted rows at their visits; then the
      lowest index.
    - "worst": the start from which fewest are accepted, none when it stays alone; then the
      largest mean distance; then the lowest index.

    Starts that accept nothing compare by the distance of their first visit. "best" and "worst" do
    not depend on the order of the rows, but for ties that only an index can break.

    Args:
        fold: How the rule runs.
        gramian: Inner products of k micro-gradients.
        rule: The rule's name, for messages.
        anchor: "random", "best" or "worst".
        seed: Seed of the random anchor.

    Returns:
        The decision; in O(k^2) for a random anchor, O(k^3) for the others.

    Raises:
        UserError: If there is only one micro-gradient.
    """
    products = products_to_visit(fold, gramian, rule)
    squares = products.diagonal()
    starts = np.flatnonzero(np.isfinite(squares) & (squares != 0)).tolist()
    if not starts:
        return visit_all(fold, products, range(gramian.k))
    if anchor == "random":
        starts = [starts[_draw(products, seed) % len(starts)]]
    orders = _orders(gramian, starts)
    decisions = [visit_all(fold, products, order) for order in orders]
    better = 1 if anchor == "worst" else -1
    return min(decisions, key=lambda decision: _rank(decision, better))


def check_anchor(anchor: str) -> None:
    """Refuse an unknown anchor.

    Args:
        anchor: Its name.

    Raises:
        UserError: If there is none of that name.
    """
    if anchor not in ANCHORS:
        raise unknown_name("anchor", anchor, ANCHORS)


def _orders(gramian: Gramian, starts: list[int]) -> list[list[int]]:
    distance = cosine_distance(gramian.matrix.cpu())[starts]
    distance[range(len(starts)), starts] = -1.0
    # NaN, a row that is not finite, sorts last.
    return distance.argsort(dim=1, stable=True).tolist()


def _rank(decision: Decision, better: int) -> tuple[int, float]:
    """Sort key: most accepted and nearest first for -1, the reverse for +1."""
    distances, accepted = decision.distances.numpy(), decision.accepted.numpy()
    visits = distances[accepted] if decision.step else distances
    visits = visits[np.isfinite(visits)]
    if not len(visits):
        return 0, 0.0
    # Rounded, so that the last bits of equal agreements do not choose between them.
    distance = round(float(visits.mean() if decision.step else visits.min()), 12)
    return better * int(accepted.sum()), -better * distance


def _draw(products_kk: np.ndarray, seed: int) -> int:
    content = f"{seed}:".encode() + np.nan_to_num(products_kk).tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())
