"""The cost of agreement on many ranks: the model's table, and its check on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from tqdm import tqdm

from gafscope.analyses.ranks_cost import measure_ranks
from gafscope.analyses.ranks_model import DDP, Network, agreed, plain, predict
from gafscope.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

_FLOAT = 4


@final
@dataclass(frozen=True)
class RanksCostSettings:
    """Predict what one decision on all ranks costs, and check the model on this machine.

    The model counts bytes, messages, memory and the time that the backward does not hide, beside
    plain DDP (an all-reduce) and plain FSDP2 (a reduce-scatter). Its bytes and memory are checked
    by processes on this machine's loopback, joined by gloo.
    """

    ranks: tuple[int, ...] = (2, 4, 8, 64, 512, 4096)
    """K, the numbers of ranks to predict for."""
    numbers: tuple[float, ...] = (11e6, 1.3e9, 70e9)
    """P, the trainable numbers to predict for."""
    rows: int = 64
    """The hierarchical variant averages groups of ranks, so that at most so many rows are left."""
    latency: float = 5e-6
    """Seconds a message."""
    bandwidth: float = 25e9
    """Bytes a second that a rank sends."""
    operations: float = 4e14
    """Operations a second of a rank."""
    bytes_a_number: int = 4
    """4 for float32 gradients, 2 for bfloat16."""
    tokens: int = 4096
    """Tokens, or samples, that a rank differentiates a step."""
    measured: tuple[int, ...] = (2, 4)
    """K to measure on this machine; none with --measured."""
    models: tuple[str, ...] = ("resnet18",)
    """What is measured: resnet18 (11.2 million numbers), mlp (10.9 million, whose backward has
    little to hide an exchange behind)."""
    microbatch: int = 4
    """Samples of a rank, where it is measured."""
    repeats: int = 9
    """Measured steps of each kind."""
    output: str = "runs/cost"
    """Folder of the tables."""


def predict_ranks(settings: RanksCostSettings) -> pd.DataFrame:
    """Predict by the model.

    Args:
        settings: The settings.

    Returns:
        See `ranks_model.predict`.

    Raises:
        UserError: If a number is out of range.
    """
    if not settings.ranks or min(settings.ranks) < 2 or not settings.numbers:
        raise UserError(
            "cost --what ranks needs at least one number of ranks of 2 or more, and one of "
            f"numbers, but found {settings.ranks} and {settings.numbers}."
        )
    positive = ("rows", "latency", "bandwidth", "operations", "bytes_a_number", "tokens")
    for name in positive:
        if getattr(settings, name) <= 0:
            raise UserError(f"{name} must be positive, but is {getattr(settings, name)}.")
    return predict(settings.ranks, settings.numbers, settings.rows, _network(settings))


def check_ranks(settings: RanksCostSettings) -> pd.DataFrame:
    """Measure on this machine, beside what the model says of bytes and memory.

    Args:
        settings: The settings.

    Returns:
        One row a network and number of ranks: `model`, `ranks`, `numbers`, `plain_MB`, `agreed_MB`
        sent by a rank, `bytes_ratio`, `predicted_ratio`, `seconds_ratio` (clock),
        `processor_ratio` (processor seconds of a rank, which tell more where there are fewer free
        cores than ranks), `extra_memory` and `predicted_memory` in units of P numbers. Empty
        without ranks.

    Raises:
        UserError: If a number is out of range.
    """
    import pandas as pd

    network = _network(settings)
    rows: list[dict[str, Any]] = []
    cases = [(model, ranks) for model in settings.models for ranks in settings.measured]
    for model, ranks in tqdm(cases, desc="cost, ranks", delay=2.0, leave=False):
        found = measure_ranks(ranks, model, settings.microbatch, settings.repeats)
        base = plain(DDP, ranks, found.numbers, network)
        own = agreed(DDP, ranks, found.numbers, 1, network)
        unit = found.numbers * _FLOAT
        rows.append(
            {
                "model": model,
                "ranks": ranks,
                "numbers": found.numbers,
                "plain_MB": found.plain_bytes / 1e6,
                "agreed_MB": found.agreed_bytes / 1e6,
                "bytes_ratio": found.agreed_bytes / found.plain_bytes,
                "predicted_ratio": own.bytes / base.bytes,
                "seconds_ratio": found.agreed_seconds / found.plain_seconds,
                "processor_ratio": found.agreed_processor / found.plain_processor,
                "extra_memory": (found.agreed_memory - found.plain_memory) / unit,
                "predicted_memory": own.memory / found.numbers / network.bytes_a_number,
            }
        )
    return pd.DataFrame(rows)


def _network(settings: RanksCostSettings) -> Network:
    return Network(
        settings.latency,
        settings.bandwidth,
        settings.operations,
        settings.bytes_a_number,
        settings.tokens,
    )
