"""The training loop: macrobatches in, decisions, updates, records and checkpoints out."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, final

import pandas as pd
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils import _pytree as pytree

from gafscope.aggregation import GAF, Gate, Mean, Weighting
from gafscope.errors import UserError
from gafscope.gradients import Loss
from gafscope.gradients.problem import batch_size, trainable
from gafscope.records import RunWriter, load_run
from gafscope.trainer.batch_norm import RunningStatistics
from gafscope.trainer.best import BestCheckpoint
from gafscope.trainer.checkpoint import load_checkpoint, save_checkpoint
from gafscope.trainer.checks import check_macrobatch, check_settings
from gafscope.trainer.evaluate import evaluate
from gafscope.trainer.interrupt import Interrupt
from gafscope.trainer.macrobatch import Macrobatch, Outcome
from gafscope.trainer.progress import Progress
from gafscope.trainer.row import describe, scalar_row
from gafscope.trainer.state import capture, random_state, restore, restore_random_state
from gafscope.trainer.watchdog import Watchdog

log = logging.getLogger("gafscope")


@final
@dataclass(eq=False)
class Trainer:
    """Train a model on macrobatches of k microbatches, filtered by a rule.

    A rejected step changes nothing: neither parameters nor optimizer, scheduler or BatchNorm's
    running statistics. Rules that visit in order (GAF, HalvingGAF, Mean) stream in the memory of
    two gradients. With a `run_dir`, everything is recorded there, and a run that was interrupted
    goes on, bit for bit on the CPU, when the same trainer is fitted again.

    Args:
        model: Any module; it may be on a GPU.
        loss: `(model, batch) -> (B,)` losses or their mean; `supervised(...)` also gives accuracy.
        optimizer: Any torch optimizer of the model's parameters that needs no closure.
        aggregator: The rule; a weighting of the Gramian.
        microbatches: k, microbatches a step.
        scheduler: Any torch scheduler. It steps after each update; ReduceLROnPlateau steps after
            each validation since which the model changed, on the accuracy (mode "max") or loss.
        run_dir: Folder of the record; None keeps the scalars in memory only.
        config: What config.yaml says about the run; None describes the trainer.
        name: What stands before the progress bar.
        batch_norm: Which microbatches move BatchNorm's running statistics: "accepted", or "all"
            (as the code released with the paper does).
        warmup_updates: Average plainly for so many updates before the rule takes over.
        max_updates: End after so many updates; None for no limit.
        gate: A control that decides at which steps to update; see `Yoked` and `RandomSkip`.
        on_stall: After 200 rejections in a row "warn" says so and goes on, "stop" ends the run.
        clip_norm: Clip the combined gradient to this norm; None does not.
        precision: "fp32", or "bf16" for autocast.
        compile: Compile the model with torch.compile.
        validate_every: Steps between validations.
        checkpoint_every: Steps between checkpoints.
        record_layers_every: Steps between Gramians by layer, which hold all k gradients at once;
            0 for never. The whole Gramian is recorded at the same steps, at k = 2 at every step.
        seed: Seed of torch's global generators during training (dropout).
        progress: Show a progress bar.

    Raises:
        UserError: If a setting is out of range or there is nothing to train.

    Example:
        >>> model = nn.Linear(3, 1)
        >>> loss = lambda model, batch: (model(batch).squeeze(1) - 1).square()
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> trainer = Trainer(model, loss, optimizer, aggregator=GAF(tau=0.97), microbatches=2)
        >>> history = trainer.fit([torch.ones(8, 3)], steps=5)
        >>> bool(history.loss.iloc[-1] < history.loss.iloc[0])
        True
    """

    model: nn.Module
    loss: Loss
    optimizer: Optimizer
    aggregator: Weighting = field(default_factory=GAF)
    microbatches: int = 2
    scheduler: LRScheduler | ReduceLROnPlateau | None = None
    run_dir: str | Path | None = None
    config: Mapping[str, Any] | None = None
    name: str = "train"
    batch_norm: str = "accepted"
    warmup_updates: int = 0
    max_updates: int | None = None
    gate: Gate | None = None
    on_stall: str = "warn"
    clip_norm: float | None = None
    precision: str = "fp32"
    compile: bool = False
    validate_every: int = 100
    checkpoint_every: int = 500
    record_layers_every: int = 100
    seed: int = 0
    progress: bool = True

    def __post_init__(self):
        check_settings(self)
        self.step = 0
        self.updates = 0
        self._parameters = trainable(self.model)
        self._device = next(iter(self._parameters.values())).device
        self._statistics = RunningStatistics(self.model)
        forward: Callable[..., Any] = torch.compile(self.model) if self.compile else self.model
        autocast = partial(torch.autocast, self._device.type, dtype=torch.bfloat16)
        self._macrobatch = Macrobatch(
            model=forward,
            parameters=self._parameters,
            loss=self.loss,
            microbatches=self.microbatches,
            autocast=autocast if self.precision == "bf16" else nullcontext,
            statistics=self._statistics,
        )
        self.watchdog = Watchdog()
        self.best = BestCheckpoint()
        self._random: dict[str, Any] | None = None
        self.changed = False
        self.status = ""
        self._rows: list[dict[str, Any]] = []

    def fit(
        self,
        train_batches: Iterable[Any],
        steps: int,
        validate: Any = None,
        test: Any = None,
    ) -> pd.DataFrame:
        """Train until `steps` macrobatches have been seen, counted from the run's beginning.

        Args:
            train_batches: Macrobatches: pytrees of tensors with k * u samples, microbatch after
                microbatch. Started anew when it ends. If it has `state_dict` and
                `load_state_dict` (as `MicrobatchSampler` has) a resumed run goes on with it where
                it was; else it is wound forward.
            steps: Steps in all, those of an earlier `fit` or of a resumed run included.
            validate: A batch to validate on; None does not validate.
            test: A batch that is evaluated once at the end, at the last and at the best
                weights by validation, and never used for a choice.

        Returns:
            The run's scalars, one row a step.

        Raises:
            UserError: If a macrobatch does not divide into k microbatches, the run diverges, the
                folder holds another run, or something cannot be written.
            KeyboardInterrupt: On Ctrl-C, after the step was completed and a checkpoint written.
        """
        devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=devices))
            torch.manual_seed(self.seed)
            writer, position = self._open(train_batches, steps, stack)
            self.status = self._end(steps, stalled=self.status == "stalled")
            if not self.status:
                if writer is not None:
                    writer.rewind(position)
                self._loop(train_batches, steps, validate, writer)
            if writer is not None and not load_run(str(self.run_dir)).summary:
                writer.summary(self._summary(validate, test))
            self._random = random_state()
        return self._history()

    def _loop(
        self, train_batches: Iterable[Any], steps: int, validate: Any, writer: RunWriter | None
    ) -> None:
        """Train until the run has ended or is interrupted."""
        batches = self._batches(train_batches)
        with Progress(self.progress, self.step, steps, self.name) as bar, Interrupt() as interrupt:
            while not self.status:
                batch = next(batches)
                row, advice = self.advance(batch, validate, writer)
                bar.update(
                    loss=row["loss"],
                    accepted=row["accepted"] / self.microbatches,
                    distance=row["distance_mean"],
                )
                if advice:
                    with bar.aside():
                        log.warning("%s: %s", self.name, advice)
                self.status = self._end(steps, stalled=advice is not None)
                if self.status or interrupt.requested or self.step % self.checkpoint_every == 0:
                    self._save(train_batches, writer)
                if interrupt.requested:
                    raise KeyboardInterrupt

    def _end(self, steps: int, stalled: bool) -> str:
        """Tell how the run has ended; nothing while it goes on."""
        if stalled and self.on_stall == "stop":
            return "stalled"
        if self.max_updates is not None and self.updates >= self.max_updates:
            return "all updates made"
        return "finished" if self.step >= steps else ""

    def _open(
        self, train_batches: Iterable[Any], steps: int, stack: ExitStack
    ) -> tuple[RunWriter | None, Mapping[str, int] | None]:
        """Open the record, and take up its checkpoint if there is one."""
        if self.run_dir is None:
            if self._random is not None:
                restore_random_state(self._random)
            return None, None
        folder = Path(self.run_dir)
        config = describe(self, steps) if self.config is None else self.config
        writer = RunWriter(folder, config, seed=self.seed, device=str(self._device))
        stack.callback(writer.close)
        state = load_checkpoint(folder)
        if state is None:
            return writer, None
        restore(self, train_batches, state)
        return writer, state["position"]

    def _save(self, train_batches: Iterable[Any], writer: RunWriter | None) -> None:
        if self.run_dir is not None and writer is not None:
            save_checkpoint(Path(self.run_dir), capture(self, train_batches, writer.flush()))

    def _summary(self, validate: Any, test: Any) -> dict[str, Any]:
        """Evaluate the last weights, and the best ones by validation."""
        numbers: dict[str, Any] = {
            "status": self.status,
            "steps": self.step,
            "updates": self.updates,
        }
        splits = {"validation": validate, "test": test}
        given = {name: batch for name, batch in splits.items() if batch is not None}
        for name, batch in given.items():
            result = evaluate(self.model, self.loss, batch)
            numbers |= {f"{name}_{key}": value for key, value in result.items()}
        if self.best.step >= 0:
            numbers["best_step"] = self.best.step
            last = self.best.restore(self.model)
            for name, batch in given.items():
                result = evaluate(self.model, self.loss, batch)
                numbers |= {f"best_{name}_{key}": value for key, value in result.items()}
            self.model.load_state_dict(last)
        return numbers

    def _history(self) -> pd.DataFrame:
        if self.run_dir is None:
            return pd.DataFrame(self._rows)
        return load_run(self.run_dir).scalars

    def advance(
        self, batch: Any, validate: Any = None, writer: RunWriter | None = None
    ) -> tuple[dict[str, Any], str | None]:
        """Do one step: macrobatch, decision, update, record. `fit` calls it for each step.

        Args:
            batch: A macrobatch.
            validate: A batch to validate on when the step calls for it.
            writer: The record; None keeps the row in memory.

        Returns:
            The row of scalars, and advice for the user when the run has just stalled.

        Raises:
            UserError: As in `fit`.
        """
        started = time.perf_counter()
        batch = pytree.tree_map(lambda leaf: leaf.to(self._device, non_blocking=True), batch)
        check_macrobatch(batch_size(batch), self.microbatches)
        warming_up = self.updates < self.warmup_updates
        every = self.record_layers_every
        layers = every > 0 and self.step % every == 0 and writer is not None
        self.model.train()
        outcome = self._macrobatch.run(batch, Mean() if warming_up else self.aggregator, layers)
        lr = self.optimizer.param_groups[0]["lr"]
        norm, stepped = self._update(outcome)
        advice = self.watchdog.see(self.step, outcome.decision)
        row = scalar_row(self.step, outcome, stepped, norm, lr)
        if validate is not None and (self.step + 1) % self.validate_every == 0:
            row |= self._validate(validate)
        row["seconds"] = time.perf_counter() - started
        if writer is None:
            self._rows.append(row)
        else:
            writer.scalars(row)
            if outcome.gramian is not None:
                gramian = outcome.gramian
                writer.gramians(self.step, gramian.matrix, gramian.layers)
        self.step += 1
        return row, advice

    def _update(self, outcome: Outcome) -> tuple[float, bool]:
        """Step the optimizer if the rule and the gate say so; give the gradient's norm too."""
        decision, update = outcome.decision, outcome.update
        opens = self.gate is None or self.gate.opens(self.step)
        stepped = update is not None and opens
        norm = math.nan
        if update is not None and opens:
            norm = outcome.norm
            for parameter, gradient in zip(self._parameters.values(), update.tensors, strict=True):
                parameter.grad = gradient
            if self.clip_norm is not None:
                nn.utils.clip_grad_norm_(self._parameters.values(), self.clip_norm)
            self.optimizer.step()
            for parameter in self._parameters.values():
                parameter.grad = None
            if self.scheduler is not None and not isinstance(self.scheduler, ReduceLROnPlateau):
                self.scheduler.step()
            self.updates += 1
            self.changed = True
        moved = decision.accepted & stepped
        if self.batch_norm == "all":
            moved = decision.finite
        self._statistics.commit(moved.nonzero().flatten().tolist())
        return norm, stepped

    def _validate(self, batch: Any) -> dict[str, float]:
        result = evaluate(self.model, self.loss, batch)
        self.best.see(self.step, self.model, result)
        if isinstance(self.scheduler, ReduceLROnPlateau) and self.changed:
            self.scheduler.step(
                result["accuracy"] if self.scheduler.mode == "max" else result["loss"]
            )
        self.changed = False
        return {f"validation_{name}": value for name, value in result.items()}

    def _batches(self, train_batches: Iterable[Any]) -> Iterator[Any]:
        """Yield macrobatches without end, from where the run is."""
        skip = 0 if hasattr(train_batches, "load_state_dict") else self.step
        while True:
            empty = True
            for batch in train_batches:
                empty = False
                if skip:
                    skip -= 1
                else:
                    yield batch
            if empty:
                raise UserError("train_batches holds no macrobatch at all; give at least one.")
