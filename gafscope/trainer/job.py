"""From settings to everything that a run needs: data, network, optimizer, rule, controls."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import ReduceLROnPlateau

from gafscope.aggregation import Gate, RandomSkip, Yoked, rule_names
from gafscope.data import Dataset, MicrobatchSampler, Split, dataset_names, load_data
from gafscope.errors import UserError, unknown_name
from gafscope.gradients import supervised
from gafscope.models import build_model, model_names
from gafscope.records import load_run
from gafscope.trainer.options import make_rule, parse_options
from gafscope.trainer.ranks import Ranks
from gafscope.trainer.settings import TrainSettings
from gafscope.trainer.similar import similar_groups
from gafscope.trainer.trainer import Trainer

_OPTIMIZERS: dict[str, Callable[[TrainSettings, Iterable[nn.Parameter]], Optimizer]] = {
    "sgd": lambda s, parameters: SGD(
        parameters, s.lr, s.momentum, weight_decay=s.weight_decay, nesterov=s.momentum > 0
    ),
    "heavy-ball": lambda s, parameters: SGD(
        parameters, s.lr, s.momentum, weight_decay=s.weight_decay
    ),
    "adam": lambda s, parameters: Adam(parameters, s.lr, weight_decay=s.weight_decay),
    "adamw": lambda s, parameters: AdamW(parameters, s.lr, weight_decay=s.weight_decay),
    "rmsprop": lambda s, parameters: RMSprop(
        parameters, s.lr, weight_decay=s.weight_decay, momentum=s.momentum
    ),
    "lamb": lambda s, parameters: further_optimizers(s.optimizer).Lamb(
        parameters, s.lr, weight_decay=s.weight_decay
    ),
    "shampoo": lambda s, parameters: further_optimizers(s.optimizer).Shampoo(
        parameters, s.lr, s.momentum, weight_decay=s.weight_decay
    ),
}
_SCHEDULERS = ("none", "plateau")
# Updates of the brief training whose activations tell which samples are similar.
_BRIEF = 100


@final
@dataclass(frozen=True, eq=False)
class Job:
    """A run before its first step.

    Attributes:
        trainer: The trainer.
        batches: Its macrobatches.
        dataset: Data, of which the validation split is for choices and the test split for none.
    """

    trainer: Trainer
    batches: MicrobatchSampler
    dataset: Dataset

    def fit(self, steps: int) -> None:
        """Train until this step, from where the run is; the test split is evaluated at its end."""
        self.trainer.fit(
            self.batches,
            steps,
            validate=self.dataset.validation.batch(),
            test=self.dataset.test.batch(),
        )


def assemble(
    settings: TrainSettings,
    run_dir: Path | None,
    config: dict[str, Any] | None = None,
    name: str = "train",
) -> Job:
    """Make what the settings describe.

    Args:
        settings: The settings.
        run_dir: Folder of the record; None keeps none.
        config: What config.yaml says.
        name: What stands before the progress bar.

    Returns:
        The run before its first step, or where its folder says that it stands.

    Raises:
        UserError: If a setting is wrong or data are missing.
    """
    _check(settings)
    rule = make_rule(settings)
    gate = _gate(settings)
    device = _device(settings.device)
    dataset = _dataset(settings, device)
    model = _model(settings, dataset).to(device)
    optimizer = _optimizer(settings, model)
    trainer = Trainer(
        model,
        supervised(nn.functional.cross_entropy),
        optimizer,
        aggregator=rule,
        microbatches=settings.microbatches,
        scheduler=_scheduler(settings, optimizer),
        run_dir=run_dir,
        config=config,
        name=name,
        batch_norm=settings.batch_norm,
        warmup_updates=settings.warmup_updates,
        max_updates=settings.max_updates,
        gate=gate,
        on_stall=settings.on_stall,
        clip_norm=settings.clip_norm,
        precision=settings.precision,
        compile=settings.compile,
        device_decision=settings.device_decision,
        validate_every=settings.validate_every,
        checkpoint_every=settings.checkpoint_every,
        keep_checkpoints=settings.keep_checkpoints,
        rank_timeout=settings.rank_timeout,
        record_layers_every=settings.record_layers_every,
        seed=settings.seed,
        progress=settings.progress,
    )
    k = settings.microbatches
    sampler = MicrobatchSampler(
        _grouped(settings, model, dataset.train),
        microbatches=1 if isinstance(k, str) else k,
        microbatch_size=settings.microbatch_size,
        balance=settings.balance,
        augment=settings.augment,
        seed=settings.seed if settings.sampling_seed is None else settings.sampling_seed,
    )
    return Job(trainer, sampler, dataset)


def _check(settings: TrainSettings) -> None:
    """Refuse what can be refused before data are read, or even downloaded."""
    names: dict[str, tuple[str, Iterable[str]]] = {
        "rule": (settings.rule, rule_names()),
        "dataset": (settings.data, dataset_names()),
        "model": (settings.model, model_names()),
        "optimizer": (settings.optimizer, _OPTIMIZERS),
        "scheduler": (settings.scheduler, _SCHEDULERS),
    }
    for kind, (name, choices) in names.items():
        if name not in choices:
            raise unknown_name(kind, name, choices)
    if not (settings.lr > 0 and math.isfinite(settings.lr)):
        raise UserError(f"lr, the learning rate, must be positive, but is {settings.lr}.")
    if settings.steps < 1:
        raise UserError(f"steps must be at least 1, but is {settings.steps}.")
    if (settings.data == "text") != (settings.model == "gpt"):
        raise UserError(
            "The data set 'text' and the model 'gpt' go together, but these are "
            f"'{settings.data}' and '{settings.model}'; use --data text --model gpt, or neither."
        )
    if settings.patience < 0:
        raise UserError(f"patience must be at least 0, but is {settings.patience}.")


def _grouped(settings: TrainSettings, model: nn.Module, train: Split) -> Split:
    """Give the samples of "similar" microbatches their groups, by a copy trained for a moment."""
    if settings.balance != "similar":
        return train
    if Ranks.found() is not None:
        raise UserError(
            "balance='similar' groups the samples by a training of its own, which ranks might "
            "round differently; use one process, or another balance."
        )
    model, loss = copy.deepcopy(model), supervised(nn.functional.cross_entropy)
    optimizer = _optimizer(settings, model)
    u = settings.microbatch_size
    batches = MicrobatchSampler(train, microbatches=1, microbatch_size=u, seed=settings.seed)
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        model.train()
        for _ in range(_BRIEF):
            optimizer.zero_grad()
            loss(model, next(batches)).mean().backward()
            optimizer.step()
    return replace(train, tasks=similar_groups(model, train, 4 * u))


def _gate(settings: TrainSettings) -> Gate | None:
    if settings.yoked_to is not None and settings.skip_rate is not None:
        raise UserError("yoked_to and skip_rate are two controls; give one of them, not both.")
    if settings.yoked_to is None:
        return None if settings.skip_rate is None else RandomSkip(settings.skip_rate, settings.seed)
    scalars = load_run(settings.yoked_to).scalars
    if len(scalars) < settings.steps:
        raise UserError(
            f"The run in {settings.yoked_to} has {len(scalars)} steps, too few for a run of "
            f"{settings.steps} that is yoked to it; let it finish first, or make fewer steps."
        )
    return Yoked(scalars["stepped"].tolist())


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"Cannot use device '{name}': {reason}. Use cpu, cuda, cuda:1 ..., or auto."
        ) from error
    return device


def _dataset(settings: TrainSettings, device: torch.device) -> Dataset:
    ranks = Ranks.found() if settings.download else None
    # One rank downloads; the others find everything there.
    if ranks is not None and not ranks.leads:
        ranks.wait()
    dataset = load_data(
        settings.data,
        data_dir=settings.data_dir,
        label_noise=settings.label_noise,
        validation=settings.validation,
        subset=settings.subset,
        seed=settings.seed,
        download=settings.download,
        download_url=settings.download_url,
        device=device,
        **parse_options(settings.data_options),
    )
    if ranks is not None and ranks.leads:
        ranks.wait()
    return dataset


def _model(settings: TrainSettings, dataset: Dataset) -> nn.Module:
    model = build_model(
        settings.model,
        input_shape=dataset.input_shape,
        num_classes=dataset.num_classes,
        seed=settings.seed,
        **parse_options(settings.model_options),
    )
    if settings.channels_last:
        # torch lays a whole module out this way; its stub knows tensors only.
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return model


def further_optimizers(name: str) -> Any:
    """Give the library of the optimizers that torch has not.

    Args:
        name: The optimizer, for the message.

    Raises:
        UserError: If it is not installed.
    """
    try:
        import pytorch_optimizer  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"The optimizer {name} comes from pytorch-optimizer, which is not installed; run "
            "`pip install 'gafscope[optimizers]'`, or use one of torch's own, such as adamw."
        ) from error
    return pytorch_optimizer


def _optimizer(settings: TrainSettings, model: nn.Module) -> Optimizer:
    try:
        return _OPTIMIZERS[settings.optimizer](settings, model.parameters())
    except ValueError as error:
        raise UserError(
            f"The optimizer {settings.optimizer} refuses its settings: {error}. Correct lr, "
            "momentum or weight_decay."
        ) from error


def _scheduler(settings: TrainSettings, optimizer: Optimizer) -> ReduceLROnPlateau | None:
    if settings.scheduler == "none":
        return None
    return ReduceLROnPlateau(optimizer, mode="max", factor=0.1, patience=settings.patience)
