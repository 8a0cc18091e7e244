"""k-means of directions: which groups of micro-gradients point the same way.

Spherical k-means (I. S. Dhillon and D. S. Modha, 2001, "Concept decompositions for large sparse
text data using clustering", Machine Learning 42), on inner products only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from gafscope.aggregation.decision import Decision
from gafscope.aggregation.selection import finite_products, weighted
from gafscope.aggregation.sequential import check_tau
from gafscope.errors import UserError, unknown_name
from gafscope.gradients import Gramian

_ITERATIONS = 100
# Directions nearer than this are one: a further cluster would split what is the same.
_SAME = 1e-12

_USES = ("largest", "means")


@final
@dataclass(frozen=True)
class KMeansDirections:
    """Group the micro-gradients by direction, drop outliers, and average one group or all.

    Rows are compared as unit vectors. The first centre is the row nearest to the mean direction,
    each further one the row farthest from its nearest centre; there are fewer clusters where no
    row is left that differs. Then rows join the cluster whose mean direction is nearest and the
    means are taken anew until nothing moves. Equal distances go to the earlier cluster or row.

    A row whose cosine distance to the mean direction of the *others* in its cluster exceeds
    `outlier_tau` is rejected, and so is a row alone in its cluster: nothing agrees with it. Zero
    rows have no direction and belong to no cluster. The weights are those of the mean of the
    largest cluster left (then the tightest, then the earliest), or of the mean of the cluster
    means, which lets small groups speak as loud as large ones. It skips when no cluster is left.

    Args:
        clusters: Number of clusters at most, at least 1.
        use: "largest" or "means".
        outlier_tau: Largest accepted cosine distance to the others of the cluster, in [0, 2].

    Raises:
        UserError: If an argument is out of range, or (when called) there are fewer than two
            micro-gradients a cluster.

    Example:
        >>> rows = torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [1, -0.1], [0.1, 1]]).double()
        >>> KMeansDirections(clusters=2)(Gramian(rows @ rows.T))
        Decision(step=True, 3 of 5 accepted, weights=[0.3333, 0.3333, 0, 0.3333, 0])
    """

    clusters: int = 2
    use: str = "largest"
    outlier_tau: float = 1.0

    def __post_init__(self):
        if self.clusters < 1:
            raise UserError(f"clusters must be at least 1, but is {self.clusters}.")
        if self.use not in _USES:
            raise unknown_name("use of the clusters", self.use, _USES)
        check_tau(self.outlier_tau)

    def __call__(self, gramian: Gramian, /) -> Decision:
        """Decide on k micro-gradients.

        Args:
            gramian: Their inner products.

        Returns:
            The decision; its distances are those to the mean direction of the others of the
            cluster, NaN for a row alone in one, 1 for a zero row.
        """
        rule = f"KMeansDirections(clusters={self.clusters})"
        products, finite = finite_products(gramian, rule, 2 * self.clusters, "fewer clusters")
        norms = products.diagonal().sqrt()
        directed = norms > 0
        cosines = products[directed][:, directed] / norms[directed, None] / norms[None, directed]
        membership = _cluster(cosines, self.clusters)
        distances = torch.where(finite, 1.0, torch.nan).double()
        weights = torch.zeros(gramian.k, dtype=torch.float64)
        if len(cosines):
            apart = _apart(cosines, membership)
            distances[directed] = apart
            kept = membership & (apart <= self.outlier_tau)[:, None]
            weights[directed] = self._weigh(kept, apart)
        return weighted(weights, distances, finite)

    def _weigh(self, kept_nc: Bool[Tensor, "n c"], apart: Tensor) -> Float64[Tensor, " n"]:
        sizes = kept_nc.sum(0)
        if self.use == "means":
            return (kept_nc.double() / sizes.clamp(min=1)).sum(1)
        spread = [float(apart[kept_nc[:, j]].sum()) for j in range(len(sizes))]
        largest = min(range(len(sizes)), key=lambda j: (-int(sizes[j]), round(spread[j], 12), j))
        return kept_nc[:, largest].double()


def _cluster(cosines_nn: Float64[Tensor, "n n"], clusters: int) -> Bool[Tensor, "n c"]:
    """Assign n unit vectors to clusters; column j holds the members of cluster j."""
    if not len(cosines_nn):
        return torch.zeros(0, 1, dtype=torch.bool)
    centres = _first_centres(cosines_nn, clusters)
    nearest = cosines_nn[:, centres].argmax(1)
    for _ in range(_ITERATIONS):
        members = torch.nn.functional.one_hot(nearest, len(centres)).double()
        lengths = (members * (cosines_nn @ members)).sum(0).clamp(min=0.0).sqrt()
        # A cluster that is empty, or whose members cancel, has no direction: at distance 1.
        scores = cosines_nn @ members / torch.where(lengths > _SAME, lengths, torch.inf)
        moved = scores.argmax(1)
        if torch.equal(moved, nearest):
            break
        nearest = moved
    return torch.nn.functional.one_hot(nearest, len(centres)).bool()


def _first_centres(cosines_nn: Tensor, clusters: int) -> Int64[Tensor, " c"]:
    """Start at the row nearest to the mean direction, then go to the farthest each time."""
    centres = [int(cosines_nn.sum(1).argmax())]
    while len(centres) < clusters:
        distance, row = (1 - cosines_nn[:, centres].amax(1)).max(0)
        if float(distance) <= _SAME:
            break
        centres.append(int(row))
    return torch.tensor(centres)


def _apart(cosines_nn: Tensor, membership_nc: Tensor) -> Float64[Tensor, " n"]:
    """Distance of each unit vector to the sum of the others of its cluster; NaN without any."""
    same = (membership_nc.double() @ membership_nc.double().T).fill_diagonal_(0.0)
    sums = same @ cosines_nn
    lengths = (sums * same).sum(1).clamp(min=0.0).sqrt()
    cosine = torch.where(lengths > _SAME, sums.diagonal() / lengths, 0.0)
    return torch.where(same.sum(1) > 0, (1 - cosine).clamp(0.0, 2.0), torch.nan)
