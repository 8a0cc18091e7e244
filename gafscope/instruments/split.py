"""Rows of loops with one backward a step: the samples of its batch, by the ghost engine.

Its hooks sit in the loop's own forward and backward (`model_calls.py`). Only when a kind of batch
is first seen are a few samples run aside (`splitter.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from torch import Tensor, nn

from gafscope import geometry
from gafscope.errors import UserError
from gafscope.gradients import Gramian
from gafscope.gradients.ghost import Products
from gafscope.gradients.ghost.ledger import Ledger
from gafscope.gradients.ghost.run import Pass
from gafscope.gradients.types import sum_of_layers
from gafscope.instruments.capture import Row
from gafscope.instruments.model_calls import ModelCalls, differs
from gafscope.instruments.splitter import Call, Splitter


@final
class SplitRows:
    """The rows of one batch, from the loop's own forward and backward.

    Args:
        splitter: Knows the model.
        parameters: The watched parameters by name.
    """

    def __init__(self, splitter: Splitter, parameters: Mapping[str, nn.Parameter]):
        self._splitter, self._parameters = splitter, parameters
        # Whether there was a single sample, with nothing to compare it to.
        self.alone = False
        self._backwards = 0
        self._gramian: Gramian | None = None
        self._calls = ModelCalls(splitter, self._begin)

    def drop(self) -> None:
        """Forget the last backward."""
        self._backwards = 0
        self._gramian = None

    def close(self) -> None:
        """Take the hooks away and let go of everything."""
        self._calls.close()

    def add(self, row: Row) -> None:
        """Take what the backward has given.

        Args:
            row: The gradient of the whole batch.

        Raises:
            UserError: If this is the second backward of the step, the model was not called, or
                the rows do not add up to the gradient.
        """
        self._backwards += 1
        if self._backwards > 1:
            raise UserError(
                "split is for loops of one backward a step, but this one makes several; leave it "
                "out to compare the microbatches of these backwards."
            )
        if self.alone:
            return
        ledger = self._calls.finish()
        matrices = {
            name: geometry.blank_rows(matrix.cpu()) for name, matrix in ledger.grams().items()
        }
        ledger.release()
        whole = sum_of_layers(matrices)
        _check_sum(whole, row)
        self._gramian = Gramian(whole, matrices, engine="ghost")

    def gramian(
        self, parameters: Mapping[str, nn.Parameter], layers: bool, scale: float
    ) -> Gramian:
        """Give the Gramian.

        Args:
            parameters: The watched parameters by name.
            layers: Keep the matrix of each parameter as well.
            scale: What the loss was multiplied by (a GradScaler's factor); taken out again.
        """
        found = self._gramian
        assert found is not None
        kept = found.layers.items() if layers else ()
        matrices = {name: matrix / scale**2 for name, matrix in kept}
        return Gramian(found.matrix / scale**2, matrices, found.engine)

    def _begin(self, call: Call) -> tuple[Pass, Ledger] | None:
        problem = self._splitter.problem(call, self._parameters)
        self.alone = problem.k < 2
        if self.alone:
            return None
        plan = self._splitter.plan(problem, call)
        ledger = Ledger(problem.parameters, plan, problem.k, Products(), keep=False)
        return Pass(problem, plan, call.n, problem.k, ledger, foreign=True), ledger


def _check_sum(matrix: Tensor, row: Row) -> None:
    """The rows add up to the loop's gradient, so all entries to its squared norm."""
    square, _ = geometry.StreamingProducts()(row, [])
    total, size = float(matrix.sum()), float(matrix.diagonal().sum())
    if differs(total, square, size):
        raise UserError(
            f"The samples' gradients have a sum of squared norm {total:.4g}, but the loop's own "
            f"gradient has {square:.4g}: part of it does not come from the watched call of the "
            "model (a penalty on the weights, a second call). Leave split out."
        )
