"""From settings to a finished run: data, network, optimizer, controls, training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import ReduceLROnPlateau

from gafscope.aggregation import GAF, Gate, HalvingGAF, Mean, RandomSkip, Weighting, Yoked
from gafscope.data import Dataset, MicrobatchSampler, load_data
from gafscope.errors import UserError, unknown_name
from gafscope.gradients import supervised
from gafscope.models import build_model
from gafscope.records import Run, load_run
from gafscope.trainer.settings import TrainSettings
from gafscope.trainer.trainer import Trainer

# Settings that say where and how to run, not what: a run may go on with others.
_ELSEWHERE = ("data_dir", "download", "download_url", "device", "run_dir", "progress")

_RULES: dict[str, Callable[[TrainSettings], Weighting]] = {
    "gaf": lambda settings: GAF(settings.tau),
    "halving-gaf": lambda settings: HalvingGAF(settings.tau),
    "mean": lambda _: Mean(),
}


def train(settings: TrainSettings, name: str = "train") -> Run:
    """Train as the settings say, or go on with, or return, the run that did.

    Args:
        settings: The settings.
        name: What stands before the progress bar.

    Returns:
        The run, read back from its folder.

    Raises:
        UserError: If a setting is wrong, data are missing, or the run diverges.
    """
    with _threads(settings.threads):
        _fit(settings, name)
    return load_run(run_folder(settings))


def _fit(settings: TrainSettings, name: str) -> None:
    rule = _rule(settings)
    gate = _gate(settings)
    device = _device(settings.device)
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
    model = _model(settings, dataset).to(device)
    optimizer = _optimizer(settings, model)
    trainer = Trainer(
        model,
        supervised(nn.functional.cross_entropy),
        optimizer,
        aggregator=rule,
        microbatches=settings.microbatches,
        scheduler=_scheduler(settings, optimizer),
        run_dir=run_folder(settings),
        config=run_config(settings),
        name=name,
        batch_norm=settings.batch_norm,
        warmup_updates=settings.warmup_updates,
        max_updates=settings.max_updates,
        gate=gate,
        on_stall=settings.on_stall,
        clip_norm=settings.clip_norm,
        precision=settings.precision,
        compile=settings.compile,
        validate_every=settings.validate_every,
        checkpoint_every=settings.checkpoint_every,
        record_layers_every=settings.record_layers_every,
        seed=settings.seed,
        progress=settings.progress,
    )
    sampler = MicrobatchSampler(
        dataset.train,
        microbatches=settings.microbatches,
        microbatch_size=settings.microbatch_size,
        balance=settings.balance,
        augment=settings.augment,
        seed=settings.seed if settings.sampling_seed is None else settings.sampling_seed,
    )
    trainer.fit(
        sampler, settings.steps, validate=dataset.validation.batch(), test=dataset.test.batch()
    )


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    if count is not None and count < 1:
        raise UserError(f"threads must be at least 1, but is {count}.")
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_config(settings: TrainSettings) -> dict[str, Any]:
    """Give the settings that make a run what it is.

    Args:
        settings: The settings.

    Returns:
        All but those that say where and how to run.
    """
    config = {key: value for key, value in asdict(settings).items() if key not in _ELSEWHERE}
    if settings.yoked_to is not None:
        config["yoked_to"] = str(settings.yoked_to)
    return config


def run_folder(settings: TrainSettings) -> Path:
    """Give the run's folder.

    Args:
        settings: The settings.

    Returns:
        `run_dir`, or a folder under runs/ that is the same for the same settings only.
    """
    if settings.run_dir is not None:
        return Path(settings.run_dir)
    config = {key: value for key, value in run_config(settings).items() if key != "steps"}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:6]
    rule = settings.rule if settings.rule == "mean" else f"{settings.rule}-tau{settings.tau:g}"
    return Path("runs") / f"{settings.data}-{settings.model}-{rule}-seed{settings.seed}-{digest}"


def parse_options(options: dict[str, Any] | None) -> dict[str, Any]:
    """Read option values as YAML does, so that 32 is a number and 3,32,32 a list of numbers.

    Args:
        options: Option name -> text, or a value that is no text already.

    Returns:
        Option name -> value.

    Example:
        >>> parse_options({"stem": "imagenet", "hidden": "256,128", "width": "32"})
        {'stem': 'imagenet', 'hidden': (256, 128), 'width': 32}
    """
    return {name: _parse(value) for name, value in (options or {}).items()}


def _parse(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, str):
        return value
    if "," in value:
        return tuple(yaml.safe_load(part) for part in value.split(",") if part)
    return yaml.safe_load(value)


def _rule(settings: TrainSettings) -> Weighting:
    if settings.rule not in _RULES:
        raise unknown_name("rule", settings.rule, _RULES)
    return _RULES[settings.rule](settings)


def _gate(settings: TrainSettings) -> Gate | None:
    if settings.yoked_to is not None and settings.skip_rate is not None:
        raise UserError("yoked_to and skip_rate are two controls; give one of them, not both.")
    if settings.yoked_to is not None:
        return Yoked(load_run(settings.yoked_to).scalars["stepped"].tolist())
    return None if settings.skip_rate is None else RandomSkip(settings.skip_rate, settings.seed)


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


def _optimizer(settings: TrainSettings, model: nn.Module) -> Optimizer:
    lr, decay, momentum = settings.lr, settings.weight_decay, settings.momentum
    makers: dict[str, Callable[[], Optimizer]] = {
        "sgd": lambda: SGD(
            model.parameters(), lr, momentum, weight_decay=decay, nesterov=momentum > 0
        ),
        "adam": lambda: Adam(model.parameters(), lr, weight_decay=decay),
        "adamw": lambda: AdamW(model.parameters(), lr, weight_decay=decay),
        "rmsprop": lambda: RMSprop(model.parameters(), lr, weight_decay=decay, momentum=momentum),
    }
    if settings.optimizer not in makers:
        raise unknown_name("optimizer", settings.optimizer, makers)
    if not lr > 0:
        raise UserError(f"lr, the learning rate, must be positive, but is {lr}.")
    return makers[settings.optimizer]()


def _scheduler(settings: TrainSettings, optimizer: Optimizer) -> ReduceLROnPlateau | None:
    if settings.scheduler not in ("none", "plateau"):
        raise unknown_name("scheduler", settings.scheduler, ("none", "plateau"))
    if settings.scheduler == "none":
        return None
    return ReduceLROnPlateau(optimizer, mode="max", factor=0.1, patience=settings.patience)
