"""Runs that ranks make together and one process makes alone, to be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ReduceLROnPlateau
from trainer_parts import network, sampler, samples, trainer_of

from gafscope.aggregation import (
    GAF,
    ByLayer,
    CalibratedGAF,
    Mean,
    RandomSkip,
    SignAgreement,
    SoftGAF,
)
from gafscope.trainer import Trainer

VALIDATION, TEST = samples(2500, seed=3), samples(50, seed=4)

# Rule, and what else is on; k = 4 for all, so that 2 and 4 ranks share them.
CASES: dict[str, dict[str, Any]] = {
    "gaf": {"aggregator": GAF(0.8)},
    "best anchor": {"aggregator": GAF(0.8, anchor="best")},
    "soft": {"aggregator": SoftGAF()},
    "calibrated": {"aggregator": CalibratedGAF(false_accept=0.2, every=20)},
    "sign": {"aggregator": SignAgreement()},
    "by layer": {"aggregator": ByLayer(GAF(0.8))},
    "much": {
        "aggregator": GAF(0.9),
        "dropout": 0.3,
        "norm": True,
        "clip_norm": 0.5,
        "warmup_updates": 10,
        "gate": RandomSkip(0.2),
        "plateau": True,
        "validate_every": 10,
        "record_layers_every": 7,
    },
    "all statistics": {"aggregator": GAF(0.8), "norm": True, "batch_norm": "all"},
    "mean": {"aggregator": Mean()},
}


def make(name: str, folder: Path | None = None, k: int = 4, **more: Any) -> Trainer:
    settings = {"microbatches": k, "run_dir": folder} | CASES[name] | more
    model = network(norm=settings.pop("norm", False), dropout=settings.pop("dropout", 0.0))
    optimizer = Adam(model.parameters(), 0.01)
    if settings.pop("plateau", False):
        optimizer = SGD(model.parameters(), 0.1, 0.9)
        settings["scheduler"] = ReduceLROnPlateau(optimizer, mode="max", factor=0.8, patience=0)
    settings.setdefault("validate_every", 50)
    return trainer_of(model, optimizer, **settings)


def fitted(trainer: Trainer, steps: int, k: int = 4) -> dict[str, Any]:
    """Fit, and give all that is to be compared."""
    accepted = []
    run = trainer._macrobatch.run

    def noted(*arguments: Any) -> Any:
        outcome = run(*arguments)
        accepted.append(outcome.decision.accepted.tolist())
        return outcome

    trainer._macrobatch.run = noted
    history = trainer.fit(sampler(k, seed=1), steps, validate=VALIDATION, test=TEST)
    return {
        "accepted": accepted,
        "history": history.drop(columns="seconds").to_dict("list"),
        "model": {name: value.clone() for name, value in trainer.model.state_dict().items()},
        "optimizer": trainer.optimizer.state_dict(),
        "best": trainer.best.state_dict(),
        "status": trainer.status,
    }


def fit_cases(_rank: int, names: tuple[str, ...], steps: int, k: int = 4) -> dict[str, Any]:
    return {name: fitted(make(name, k=k), steps, k) for name in names}


def fit_in_folder(_rank: int, name: str, folder: str, steps: int, **more: Any) -> dict[str, Any]:
    return fitted(make(name, Path(folder), **more), steps)


def equal(a: Any, b: Any) -> bool:
    """Compare nested values bit for bit; NaN equals NaN."""
    if isinstance(a, torch.Tensor):
        return bool(torch.equal(a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return repr(a) == repr(b)
