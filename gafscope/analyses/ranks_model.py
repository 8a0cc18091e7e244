"""What agreement costs on many ranks, by a stated model of the network.

Per rank and step, with K ranks of one row each, P numbers of s bytes, groups of g ranks averaged
first, k = K / g rows in the Gramian, and a link of latency a and bandwidth b in each direction:

* plain DDP, a ring all-reduce: 2 P s (K-1)/K bytes in 2 (K-1) messages, hidden behind the backward;
* agreed DDP: an all-to-all of shards, P s (K-1)/K bytes in K - 1 messages, hidden behind the
  backward; the partial Gramian of the own shard, 2 k^2 P / K operations; an all-reduce of 8 k^2
  bytes; and an all-gather of the update, P s (K-1)/K bytes in K - 1 messages, which can only begin
  after the decision and so is not hidden;
* plain FSDP2: a reduce-scatter, P s (K-1)/K bytes; agreed: an all-to-all of as many, the Gramian
  and its all-reduce, and nothing more, since parameters stay sharded.

A collective of n messages and B bytes takes n a + B / b. What is hidden costs what is left of it
after the backward, 4 P operations a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from gafscope.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

DDP, FSDP = "DDP", "FSDP2"
_DOUBLE = 8


@final
@dataclass(frozen=True)
class Network:
    """What ranks and links can do.

    Attributes:
        latency: a, seconds a message.
        bandwidth: b, bytes a second that a rank sends.
        operations: Of a rank, a second.
        bytes_a_number: s.
        tokens: Tokens, or samples, that a rank differentiates a step.
    """

    latency: float
    bandwidth: float
    operations: float
    bytes_a_number: int
    tokens: int


@final
@dataclass(frozen=True)
class Predicted:
    """One step of one rank.

    Attributes:
        bytes: That it sends.
        messages: That it sends.
        seconds: Of communication and decision that the backward does not hide.
        memory: Bytes beyond model, gradients and optimizer.
    """

    bytes: float
    messages: float
    seconds: float
    memory: float


def plain(kind: str, ranks: int, numbers: float, network: Network) -> Predicted:
    """Predict a step without agreement.

    Args:
        kind: "DDP" or "FSDP2".
        ranks: K.
        numbers: P.
        network: Ranks and links.
    """
    times = 2 if kind == DDP else 1
    sent = times * _shard_bytes(ranks, numbers, network)
    messages = times * (ranks - 1)
    seconds = _left(messages * network.latency + sent / network.bandwidth, numbers, network)
    return Predicted(sent, messages, seconds, 0.0)


def agreed(kind: str, ranks: int, numbers: float, group: int, network: Network) -> Predicted:
    """Predict a step that all ranks agree on.

    Args:
        kind: "DDP" or "FSDP2".
        ranks: K.
        numbers: P.
        group: g.
        network: Ranks and links.

    Raises:
        UserError: If g does not divide K.
    """
    if group < 1 or ranks % group:
        raise UserError(f"The group size must divide the {ranks} ranks, but is {group}.")
    rows = ranks // group
    shards = _shard_bytes(ranks, numbers, network)
    gramian = 2 * _DOUBLE * rows**2 * (ranks - 1) / ranks
    there = (ranks - 1) * network.latency + shards / network.bandwidth
    decision = (
        2 * rows**2 * numbers / ranks / network.operations
        + 2 * (ranks - 1) * network.latency
        + gramian / network.bandwidth
    )
    seconds = _left(there, numbers, network) + decision
    sent, messages = shards + gramian, 3 * (ranks - 1)
    size = network.bytes_a_number
    # The shards of the others, and the own shard of the update.
    memory = numbers * size + numbers / ranks * size + _DOUBLE * rows**2
    if kind == DDP:
        sent, messages, seconds = sent + shards, messages + ranks - 1, seconds + there
    return Predicted(sent, messages, seconds, memory)


def predict(
    ranks: tuple[int, ...], numbers: tuple[float, ...], rows: int, network: Network
) -> pd.DataFrame:
    """Predict for many sizes, with a row a rank and with groups of ranks.

    Args:
        ranks: K, each.
        numbers: P, each.
        rows: Most rows of the hierarchical variant; it is left out where K is not larger.
        network: Ranks and links.

    Returns:
        One row a kind, K, P and group size: `kind`, `ranks`, `numbers`, `group`, `plain_GB` and
        `agreed_GB` a rank sends, `bytes_ratio`, `messages`, `plain_seconds` and `agreed_seconds`
        that the backward does not hide, `step_ratio` (both with the forward and backward), and
        `memory_GB` beyond plain.
    """
    import pandas as pd

    return pd.DataFrame(
        [
            _row(kind, count, number, group, network)
            for kind in (DDP, FSDP)
            for number in numbers
            for count in ranks
            for group in dict.fromkeys((1, max(count // rows, 1)))
        ]
    )


def _row(kind: str, ranks: int, numbers: float, group: int, network: Network) -> dict[str, Any]:
    base = plain(kind, ranks, numbers, network)
    own = agreed(kind, ranks, numbers, group, network)
    compute = 1.5 * _backward(numbers, network)  # a forward is half a backward
    return {
        "kind": kind,
        "numbers": numbers,
        "ranks": ranks,
        "group": group,
        "plain_GB": base.bytes / 1e9,
        "agreed_GB": own.bytes / 1e9,
        "bytes_ratio": own.bytes / base.bytes,
        "messages": own.messages,
        "plain_seconds": base.seconds,
        "agreed_seconds": own.seconds,
        "step_ratio": (compute + own.seconds) / (compute + base.seconds),
        "memory_GB": own.memory / 1e9,
    }


def _shard_bytes(ranks: int, numbers: float, network: Network) -> float:
    """Bytes that a rank sends when it gives each other rank its shard."""
    return numbers * network.bytes_a_number * (ranks - 1) / ranks


def _backward(numbers: float, network: Network) -> float:
    return 4 * numbers * network.tokens / network.operations


def _left(seconds: float, numbers: float, network: Network) -> float:
    return max(seconds - _backward(numbers, network), 0.0)
