"""Training by the Hugging Face `Trainer`."""

from __future__ import annotations

from typing import Any, final

from gafscope.errors import UserError
from gafscope.instruments.accelerate import watch_prepared
from gafscope.instruments.extras import base_class, require
from gafscope.instruments.scope_holder import ScopeHolder

_Callback: Any = base_class("transformers", "TrainerCallback")


@final
class WatchCallback(ScopeHolder, _Callback):
    """Watches what a Hugging Face `Trainer` trains.

    A step's backwards are its `gradient_accumulation_steps`; with one, give `split`. The Trainer
    divides the loss by their number k or, where the model takes `num_items_in_batch` (language
    models do), by the labels in all of them: the micro-gradients of microbatches with more labels
    are longer then, as they are in the Trainer's own update.

    Filters act as in any loop: the Trainer clips the filtered gradient, and its scheduler is held
    back with the step. The Trainer's own count of steps goes on. Its logs have the loss, which
    callbacks do not see; the record has none.

    Steps count from 0 at the beginning of each `train()`, which needs a `run_dir` of its own. Where
    `train()` raises, call `stop()` to put everything back; the next `train()` does so as well.

    Args:
        **options: Any option of `gafscope.instruments.watch` but `scheduler` and `scaler`, which
            are the Trainer's.

    Raises:
        UserError: If transformers is not installed. When training begins: if `watch` refuses.

    Example:
        >>> from transformers import Trainer, TrainingArguments  # doctest: +SKIP
        >>> callback = WatchCallback(every=10)  # doctest: +SKIP
        >>> arguments = TrainingArguments(gradient_accumulation_steps=4)  # doctest: +SKIP
        >>> trainer = Trainer(model, arguments, train_dataset=data, callbacks=[callback])  \
# doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
        >>> callback.scope.plot()  # doctest: +SKIP
    """

    _BEGIN = "trainer.train()"

    def __init__(self, **options: Any):
        require("transformers", "hf", "WatchCallback")
        super().__init__()
        self._options = options

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start to watch the Trainer's model and optimizer."""
        self.stop()
        options = self._options
        if options.get("filter") is not None and args.world_size > 1:
            raise UserError(
                f"filter=... decides in each of the {args.world_size} processes alone, so that "
                "their models would diverge; train with one process, or watch without a filter."
            )
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        scheduler = kwargs["lr_scheduler"]
        self._scope = watch_prepared(model, optimizer, scheduler=scheduler, **options)
        self._scope.start()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop watching."""
        self.stop()
