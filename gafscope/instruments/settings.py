"""What a watch was told."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import nn
from torch.optim import Optimizer

from gafscope.aggregation import Rule
from gafscope.instruments.scaling import LossScale
from gafscope.instruments.schedule import Schedule
from gafscope.instruments.watched import inner_model


@final
@dataclass(frozen=True, eq=False)
class Settings:
    """What `watch` was told; `watch` documents and checks them."""

    model: nn.Module
    optimizers: Sequence[Optimizer]
    schedule: Schedule
    microbatches: int | None
    rule: Rule
    filters: bool
    scheduler: Any
    scale: LossScale
    layers: bool
    memory: str
    split: int | str | None

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer whose steps count."""
        return self.optimizers[0]

    @property
    def lr(self) -> float:
        """The learning rate of the optimizer's first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def described(self) -> dict[str, Any]:
        """Give what config.yaml says."""
        model = inner_model(self.model)
        numbers = sum(parameter.numel() for parameter in model.parameters())
        tau = getattr(self.rule, "tau", None)
        return {
            "model": f"{type(model).__name__} ({numbers:,} parameters)",
            "rule": re.sub(r" at 0x[0-9a-fA-F]+", "", repr(self.rule)),
            **({"tau": float(tau)} if isinstance(tau, int | float) else {}),
            "optimizer": type(self.optimizer).__name__,
            "lr": self.lr,
            "mode": "filter" if self.filters else "observe",
            "every": repr(self.schedule),
            "microbatches": self.microbatches,
            "split": self.split,
            "layers": self.layers,
            "memory": self.memory,
        }
