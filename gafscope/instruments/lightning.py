"""Training by Lightning's `Trainer`."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor
from torch.optim import Optimizer

from gafscope.errors import UserError
from gafscope.instruments.extras import base_class, require
from gafscope.instruments.scope_holder import ScopeHolder
from gafscope.instruments.watch import watch

_Callback: Any = base_class("lightning.pytorch", "Callback")


@final
class WatchCallback(ScopeHolder, _Callback):
    """Watches what a Lightning `Trainer` fits.

    A step's backwards are its `accumulate_grad_batches`; with one, give `split`, for which
    `training_step` must call the module itself, `self(inputs)`. Lightning divides the loss by
    their number k, so rows are 1/k, and entries of the Gramian 1/k^2, of what `gafscope.gramian`
    gives. The losses of the record are those before the division.

    Lightning runs the last backward of a step inside the optimizer's step and clips there as well.
    The decision is taken in `on_before_optimizer_step`, between the two, so that the clipping sees
    what a filter leaves. A filter holds back a scheduler that is stepped once a step (`interval`
    "step"); one that is stepped once an epoch goes on. Lightning's own count of steps goes on too.

    Steps count from 0 at the beginning of each `fit`, which needs a `run_dir` of its own.
    Everything is put back when training ends, also by an exception.

    Args:
        **options: Any option of `gafscope.instruments.watch` but `scheduler` and `scaler`, which
            are Lightning's.

    Raises:
        UserError: If lightning is not installed. When training begins: if there is more than one
            optimizer, or `watch` refuses.

    Example:
        >>> import lightning as L  # doctest: +SKIP
        >>> callback = WatchCallback(every=10)  # doctest: +SKIP
        >>> trainer = L.Trainer(accumulate_grad_batches=4, callbacks=[callback])  # doctest: +SKIP
        >>> trainer.fit(module, loader)  # doctest: +SKIP
        >>> callback.scope.plot()  # doctest: +SKIP
    """

    _BEGIN = "trainer.fit()"

    def __init__(self, **options: Any):
        require("lightning.pytorch", "lightning", "WatchCallback")
        super().__init__()
        self._options = options

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start to watch the module and its optimizer."""
        self.stop()
        if len(trainer.optimizers) != 1:
            raise UserError(
                "WatchCallback watches one optimizer, since Lightning steps several in turns, but "
                f"the module has {len(trainer.optimizers)}; use gafscope.instruments.watch for the "
                "submodule and optimizer in question."
            )
        stepwise = [c.scheduler for c in trainer.lr_scheduler_configs if c.interval == "step"]
        self._scope = watch(
            trainer.model,
            trainer.optimizers[0],
            scheduler=stepwise[0] if stepwise else None,
            scaler=getattr(trainer.precision_plugin, "scaler", None),
            **self._options,
        )
        self._scope.start()

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Note the loss of a microbatch."""
        divided = pl_module.automatic_optimization
        self.scope.loss(loss.detach() * (trainer.accumulate_grad_batches if divided else 1))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Optimizer) -> None:
        """Decide after the last backward and before the gradient is clipped."""
        self.scope.before_step()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Stop watching."""
        self.stop()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Stop watching."""
        self.stop()
