"""Any weighting or aggregator of TorchJD (UPGrad, MGDA, PCGrad, CAGrad ...) as a rule.

Shape legend: k rows; P trainable numbers in all; c finite rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, final, get_args, get_origin

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from gafscope.aggregation.apply import equal_weights
from gafscope.aggregation.decision import Decision
from gafscope.aggregation.kinds import Aggregate
from gafscope.aggregation.mean import Mean
from gafscope.errors import UserError
from gafscope.geometry import finite_rows
from gafscope.gradients import GradientRows, Gramian


def from_torchjd(thing: Any) -> TorchJDWeighting | TorchJDRows:
    """Make a rule of a TorchJD weighting or aggregator.

    Its weights are passed through as they are: they need not add up to 1 (UPGrad's and PCGrad's
    may add up to about k, so that the learning rate means something else) and may be negative.
    A micro-gradient whose weight is not 0 counts as accepted; where all weights are 0 the step
    is skipped. TorchJD sees the finite micro-gradients only. What draws at random (PCGrad) draws
    from torch's global generator, which the trainer seeds. What a TorchJD object remembers from
    call to call (GradVac, NashMTL) is not checkpointed: a resumed run begins with it anew.

    Args:
        thing: A `torchjd.aggregation.Weighting` or `Aggregator`.

    Returns:
        A weighting where the object needs inner products only, whole or inside a
        `GramianWeightedAggregator`; else a rule that needs rows, which are laid end to end for
        it (one more copy of them).

    Raises:
        UserError: If TorchJD is not installed or the object is none of its own.

    Example:
        >>> from torchjd.aggregation import UPGrad  # doctest: +SKIP
        >>> trainer = Trainer(model, loss, optimizer, from_torchjd(UPGrad()))  # doctest: +SKIP
    """
    try:
        aggregation: Any = import_module("torchjd.aggregation")
    except ImportError as error:
        raise UserError(
            "from_torchjd needs TorchJD, which is not installed: pip install 'gafscope[torchjd]'."
        ) from error
    if isinstance(thing, aggregation.GramianWeightedAggregator):
        return TorchJDWeighting(repr(thing), thing.gramian_weighting)
    if isinstance(thing, aggregation.WeightedAggregator):
        return TorchJDRows(repr(thing), thing.weighting, weighs=True)
    if isinstance(thing, aggregation.Aggregator):
        return TorchJDRows(repr(thing), thing, weighs=False)
    if isinstance(thing, aggregation.Weighting):
        if _takes_gramian(thing):
            return TorchJDWeighting(repr(thing), thing)
        return TorchJDRows(repr(thing), thing, weighs=True)
    raise UserError(
        "from_torchjd takes an object of torchjd.aggregation, a Weighting or an Aggregator, such "
        f"as UPGrad(), but got {thing!r}."
    )


@final
@dataclass(frozen=True, eq=False)
class TorchJDWeighting:
    """A TorchJD weighting of the Gramian; see `from_torchjd`.

    Attributes:
        name: What it shows as.
    """

    name: str
    _weighting: Callable[[Tensor], Tensor] = field(repr=False)

    def __call__(self, gramian: Gramian, /) -> Decision:
        """Weigh k micro-gradients.

        Args:
            gramian: Their inner products.

        Returns:
            The decision; distances are those to the running sum, as `Mean` records them.

        Raises:
            UserError: If TorchJD refuses, as Krum does for too small a k.
        """
        matrix = gramian.matrix.cpu()
        finite = finite_rows(matrix)
        weights = _ask(self._weighting, matrix[finite][:, finite], finite, self.name)
        return _decision(gramian, finite, weights)


@final
@dataclass(frozen=True, eq=False)
class TorchJDRows:
    """A TorchJD object that needs the rows themselves; see `from_torchjd`.

    Attributes:
        name: What it shows as.
        weighs: Whether it gives weights; else it gives the combined vector.
    """

    name: str
    _function: Callable[[Tensor], Tensor] = field(repr=False)
    weighs: bool = False

    def aggregate(self, rows: GradientRows, gramian: Gramian, /) -> Aggregate:
        """Combine k micro-gradients.

        Args:
            rows: The micro-gradients.
            gramian: Their inner products.

        Returns:
            The update. Of an aggregator that gives no weights every finite row counts as
            accepted.

        Raises:
            UserError: If TorchJD refuses.
        """
        finite = finite_rows(gramian.matrix)
        flat = rows.flat()
        result = _ask(self._function, flat[finite.to(flat.device)], finite, self.name)
        if self.weighs:
            decision = _decision(gramian, finite, result)
            return Aggregate(rows.combine(decision.weights) if decision.step else {}, decision)
        decision = equal_weights(Mean()(gramian), finite, step=result is not None)
        return Aggregate({} if result is None else _named(result, rows), decision)


def _ask(
    function: Callable[[Tensor], Tensor], statistic: Tensor, finite: Tensor, name: str
) -> Tensor | None:
    """Call TorchJD; None where too few rows are finite for it."""
    if not len(statistic):
        return None
    try:
        return function(statistic).detach()
    except ValueError as error:
        if not bool(finite.all()):
            return None
        raise UserError(
            f"TorchJD's {name} refuses k = {len(finite)} micro-gradients: {error}"
        ) from error
    except ImportError as error:
        raise UserError(f"TorchJD's {name} needs a package of its own: {error}") from error


def _decision(gramian: Gramian, finite: Bool[Tensor, " k"], weights_c: Tensor | None) -> Decision:
    weights: Float64[Tensor, " k"] = torch.zeros(len(finite), dtype=torch.float64)
    if weights_c is not None:
        weights[finite] = weights_c.double().cpu()
    accepted = weights != 0
    return replace(Mean()(gramian), weights=weights, accepted=accepted, step=bool(accepted.any()))


def _named(vector: Tensor, rows: GradientRows) -> dict[str, Tensor]:
    sizes = [values[0].numel() for values in rows.named.values()]
    return {
        name: part.reshape(values.shape[1:]).to(values)
        for (name, values), part in zip(rows.named.items(), vector.split(sizes), strict=True)
    }


def _takes_gramian(weighting: object) -> bool:
    """Tell whether a TorchJD weighting is declared for Gramians, `Weighting[PSDMatrix]`."""
    Weighting: Any = import_module("torchjd.aggregation").Weighting
    linalg: Any = import_module("torchjd.linalg")
    taken = {
        get_args(base)[0]
        for kind in type(weighting).__mro__
        for base in kind.__dict__.get("__orig_bases__", ())
        if get_origin(base) is Weighting
    }
    inner = getattr(weighting, "weighting", None)
    if taken & {linalg.PSDMatrix, linalg.Matrix} or hasattr(weighting, "fn"):
        # What is composed with a function takes what that function does: rows.
        return linalg.PSDMatrix in taken
    # A wrapper, such as CRMOGM's smoothing, takes what the weighting in it takes.
    return isinstance(inner, Weighting) and _takes_gramian(inner)
