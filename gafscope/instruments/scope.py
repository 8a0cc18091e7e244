"""A watched loop: steps, macrobatches, records; everything is put back at the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, final

from torch import Tensor
from torch.optim import Optimizer

from gafscope import geometry
from gafscope.distributed.overriding import Override
from gafscope.errors import UserError
from gafscope.gradients.batch_norm import RunningStatistics
from gafscope.instruments.capture import Capture
from gafscope.instruments.closures import with_closure
from gafscope.instruments.ghost_rows import GhostRows
from gafscope.instruments.listener import Listener, Record
from gafscope.instruments.log import Log
from gafscope.instruments.macrobatch import Macrobatch, Outcome, hooked_rows
from gafscope.instruments.memory import Rows
from gafscope.instruments.row import scalar_row
from gafscope.instruments.settings import Settings
from gafscope.instruments.split import SplitRows
from gafscope.instruments.splitter import Splitter
from gafscope.instruments.watched import (
    check_unfiltered,
    empty_gradients,
    inner_model,
    watched_parameters,
)
from gafscope.records import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("gafscope")
_Loss = TypeVar("_Loss", Tensor, float)


@final
class Scope:
    """Watches a loop between `start` and `stop`, or inside a `with`; made by `watch`.

    Attributes:
        step: The optimizer's steps since the first start, those that a GradScaler skipped
            included.
        watching: Whether it has been started and not stopped.
        filters: Whether a rule acts on the gradients.
    """

    def __init__(
        self, settings: Settings, run_dir: str | Path | None, listeners: Sequence[Listener]
    ):
        self._settings = settings
        self.filters = settings.filters
        self._rows = Rows(settings.memory)
        self._products = geometry.StreamingProducts()
        self._statistics = RunningStatistics(inner_model(settings.model))
        self._splitter = Splitter(inner_model(settings.model), settings.split)
        parameters = watched_parameters(settings.model, settings.optimizers)
        device = str(next(iter(parameters.values())).device)
        self._listeners = listeners
        self._log = Log(run_dir, settings.described(), device, listeners)
        self.step = 0
        self.watching = False
        self._paused = self._held = self._told = False
        self._recorded = self._most = 0
        self._losses: list[Tensor | float] = []
        self._capture: Capture | None = None
        self._macrobatch: Macrobatch | None = None
        self._hooked: SplitRows | GhostRows | None = None
        self._outcome: Outcome | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Scope:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to watch, or go on after `stop`.

        Raises:
            UserError: If it is started already, another watch filters this optimizer's
                gradients, or the parameters cannot be watched.
        """
        settings = self._settings
        if self.watching:
            raise UserError("This watch was started already; stop it before it is started again.")
        if self.filters:
            check_unfiltered(settings.optimizers)
        with ExitStack() as stack:
            self._log.open()
            stack.callback(self._close_log)
            for listener in self._listeners:
                if isinstance(listener, AbstractContextManager):
                    stack.enter_context(listener)
            stack.callback(self._rows.close)
            stack.callback(self._disarm)
            optimizer = settings.optimizer
            stack.callback(optimizer.register_step_pre_hook(self._before).remove)
            stack.callback(optimizer.register_step_post_hook(self._after).remove)
            for other in settings.optimizers[1:]:
                stack.callback(other.register_step_pre_hook(self._before_other).remove)
            if self.filters and settings.scheduler is not None:
                stack.callback(Override(settings.scheduler, self._step_scheduler).undo)
            if settings.scale.scaler is not None:
                stack.callback(Override(settings.scale.scaler, self._step_scaler).undo)
            self._began = time.perf_counter()
            self._arm()
            self._stack = stack.pop_all()
        self.watching = True

    def stop(self) -> None:
        """Stop watching and put everything back; a second time it does nothing."""
        self.watching = self._held = False
        self._stack.close()

    def pause(self) -> None:
        """Leave the loop alone until `resume`; steps are counted all the same.

        Call it between two steps. In filter mode the loop accumulates plainly meanwhile.
        """
        self._paused, self._held = True, False
        self._disarm()

    def resume(self) -> None:
        """Go on after `pause`: at once where `.grad` is empty, else after the next step."""
        self._paused = False
        parameters = watched_parameters(self._settings.model, self._settings.optimizers)
        if self.watching and all(p.grad is None for p in parameters.values()):
            self._arm()

    def loss(self, value: _Loss) -> _Loss:
        """Note the loss of a microbatch; the record holds the mean over the step.

        Args:
            value: The loss, as it shall be recorded: before a division by k, or a scaling.

        Returns:
            The same, so that `scope.loss(loss).backward()` reads well.
        """
        if self._capture is not None:
            self._losses.append(value.detach() if isinstance(value, Tensor) else value)
        return value

    @property
    def run(self) -> Run:
        """What has been recorded so far, as `load_run` gives it.

        Without a `run_dir` its folder is a temporary one that lasts as long as the program.
        """
        return self._log.run(is_open=self.watching)

    def plot(self) -> Figure:
        """Draw what has been recorded so far; see `Run.plot`."""
        return self.run.plot()

    def before_step(self) -> None:
        """Take the decision of this step; a hook calls it just before the optimizer's step.

        Adapters whose framework changes gradients before that call it themselves, after the
        step's last backward. A second call in a step does nothing.

        Raises:
            UserError: If the loop makes one backward a step, or another number than it was said
                to make, or the parameters changed between two of them.
        """
        macrobatch, settings = self._macrobatch, self._settings
        if self._capture is None or macrobatch is None or self._outcome is not None:
            return
        self._held = False
        if not macrobatch.count:
            self._tell_idle()
            return
        self._check_several(macrobatch.count)
        if self._changed() or (macrobatch.alone and not self.filters):
            return
        self._outcome = outcome = macrobatch.finish()
        if self.filters:
            self._held = not outcome.decision.step
            if self._held:
                empty_gradients(settings.optimizer)
            self._statistics.commit(outcome.decision.accepted.nonzero().flatten().tolist())

    # What the optimizer's hooks, the scheduler and the scaler call.

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        name = type(optimizer).__name__
        instead = with_closure(args, kwargs, name, self.before_step)
        if instead is None:
            self.before_step()
        return instead

    def _before_other(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # Only now: a GradScaler wants to see the gradients of each optimizer before its step.
        if self._held:
            empty_gradients(optimizer)

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # Fused optimizers are stepped by a GradScaler in any case and skip by themselves.
        infinite = getattr(optimizer, "found_inf", None)
        self._end_step(skipped=infinite is not None and bool(infinite))

    def _step_scaler(self, step: Callable[..., Any], optimizer: Optimizer, *args: Any, **kw: Any):
        before = self.step
        result = step(optimizer, *args, **kw)
        inner = vars(optimizer).get("optimizer", optimizer)
        if inner is self._settings.optimizer and self.step == before:
            self.before_step()
            self._end_step(skipped=True)
        return result

    def _step_scheduler(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return None if self._held else step(*args, **kwargs)

    def _end_step(self, skipped: bool) -> None:
        outcome, now = self._outcome, time.perf_counter()
        if outcome is not None:
            stepped = not skipped and (outcome.decision.step or not self.filters)
            row = scalar_row(self.step, outcome, stepped, self._losses, self._settings.lr)
            row["seconds"] = now - self._began
            self._log.write(Record(self.step, row, outcome.gramian))
            self._recorded += 1
        self._began = now
        self.step += 1
        self._arm()

    # From one step to the next.

    def _arm(self) -> None:
        """Get ready for the next macrobatch, if it is to be watched."""
        self._disarm()
        settings = self._settings
        due = settings.schedule.due(self.step)
        if self._paused or not (due or self.filters):
            return
        parameters = watched_parameters(settings.model, settings.optimizers)
        self._hooked = hooked_rows(settings, self._splitter, parameters)
        self._macrobatch = macrobatch = Macrobatch(
            parameters,
            settings,
            due,
            self._rows if self._hooked is None else self._hooked,
            self._statistics,
            self._products,
        )
        self._capture = Capture(parameters, macrobatch.begins, macrobatch.add)

    def _disarm(self) -> None:
        if self._capture is not None:
            self._capture.close()
        if self._hooked is not None:
            self._hooked.close()
        self._rows.drop()
        self._losses = []
        self._hooked = None
        self._capture = self._macrobatch = self._outcome = None

    def _changed(self) -> bool:
        """Tell whether the parameters are others than those that were watched."""
        assert self._capture is not None
        now = watched_parameters(self._settings.model, self._settings.optimizers)
        before = self._capture.parameters
        names = [n for n in {**before, **now} if before.get(n) is not now.get(n)]
        if names and self.filters:
            raise UserError(
                f"The parameters to train changed since the last step ('{names[0]}' and "
                f"{len(names) - 1} others), so this step cannot be filtered; stop() the watch "
                "before such a change and start() it after."
            )
        return bool(names)

    def _check_several(self, backwards: int) -> None:
        self._most = max(self._most, backwards)
        if self._most == 1 and self._settings.split is None:
            raise UserError(
                "The loop makes one backward a step, so there is nothing to compare: accumulate "
                "the gradients of at least 2 microbatches, or give split='samples' (or a number) "
                "to compare the samples of its one batch."
            )

    def _tell_idle(self) -> None:
        if not self._told:
            self._told = True
            log.warning(
                "watch: the optimizer stepped without a backward since its last step; such steps "
                "are counted and not recorded."
            )

    def _close_log(self) -> None:
        self._log.close({"steps": self.step, "recorded": self._recorded})
