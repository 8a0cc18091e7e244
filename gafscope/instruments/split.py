"""Rows of loops with one backward a step: the samples of its batch, by the ghost engine.

The engine's own forward and backward are not run: its hooks sit in those of the loop. Only when a
kind of batch is first seen are a few samples run aside (`splitter.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from gafscope import geometry
from gafscope.errors import UserError
from gafscope.gradients import Gramian
from gafscope.gradients.ghost import Products
from gafscope.gradients.ghost.ledger import Ledger
from gafscope.gradients.ghost.run import Pass
from gafscope.gradients.types import sum_of_layers
from gafscope.instruments.capture import Row
from gafscope.instruments.splitter import Call, Splitter

# Float32 products of hundreds of rows add up to this; a call that was missed is far more.
_TOLERANCE = 1e-3


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
        self._pass: Pass | None = None
        self._ledger: Ledger | None = None
        self._entered = False
        self._gramian: Gramian | None = None
        model = splitter.model
        self._handles = [
            model.register_forward_pre_hook(self._enter, with_kwargs=True),
            model.register_forward_hook(self._leave, always_call=True),
        ]

    def drop(self) -> None:
        """Forget the last backward."""
        self._backwards = 0
        self._gramian = None

    def close(self) -> None:
        """Take the hooks away and let go of everything."""
        for handle in self._handles:
            handle.remove()
        self._release()

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
        if self._pass is None or self._ledger is None:
            raise UserError(
                "split watches the call of the model, but a backward came without one; call the "
                f"{type(self._splitter.model).__name__} itself, not only parts of it."
            )
        self._pass.finish()
        matrices = {
            name: geometry.blank_rows(matrix.cpu()) for name, matrix in self._ledger.grams().items()
        }
        self._release()
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

    def _enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._splitter.looking or not torch.is_grad_enabled():
            return
        self._release()
        call = Call(args, kwargs)
        problem = self._splitter.problem(call, self._parameters)
        self.alone = problem.k < 2
        if self.alone:
            return
        plan = self._splitter.plan(problem, call)
        ledger = Ledger(problem.parameters, plan.calls, problem.k, Products(), keep=False)
        self._ledger = ledger
        self._pass = Pass(problem, plan.calls, call.n, problem.k, ledger, foreign=True)
        self._pass.__enter__()
        self._entered = True

    def _leave(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._splitter.looking or not self._entered:
            return
        assert self._pass is not None and self._ledger is not None
        self._entered = False
        self._pass.__exit__(None, None, None)
        self._ledger.limit(self._pass.input_bytes // 4)
        self._pass.listen()

    def _release(self) -> None:
        if self._pass is not None:
            if self._entered:
                self._entered = False
                self._pass.__exit__(None, None, None)
            self._pass.release()
        if self._ledger is not None:
            self._ledger.release()
        self._pass = self._ledger = None


def _check_sum(matrix: Tensor, row: Row) -> None:
    """The rows add up to the loop's gradient, so all entries to its squared norm."""
    square, _ = geometry.StreamingProducts()(row, [])
    total, size = float(matrix.sum()), float(matrix.diagonal().sum())
    if abs(total - square) > _TOLERANCE * max(size, square):
        raise UserError(
            f"The samples' gradients have a sum of squared norm {total:.4g}, but the loop's own "
            f"gradient has {square:.4g}: part of it does not come from the watched call of the "
            "model (a penalty on the weights, a second call). Leave split out."
        )
