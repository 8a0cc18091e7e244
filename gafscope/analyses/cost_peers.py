"""Gramians of single samples by other libraries, where they are installed.

Each takes a case to a call that returns the (n, n) Gramian by the library's own documented way.
Nothing of a library is imported before it is asked for.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from gafscope.analyses.cost_cases import Case
from gafscope.errors import unknown_name


def opacus_gramian(case: Case) -> Callable[[], Tensor]:
    """Take per-sample gradients from Opacus' `GradSampleModule`, then one product a parameter.

    Args:
        case: Network and batch; the network is copied.

    Returns:
        The call.
    """
    from opacus import GradSampleModule  # pyright: ignore[reportMissingImports]

    wrapped: Any = GradSampleModule(copy.deepcopy(case.model), loss_reduction="sum")

    def call() -> Tensor:
        case.loss(wrapped, case.batch).sum().backward()
        return _gramian_of_rows(wrapped, "grad_sample")

    return call


def backpack_gramian(case: Case) -> Callable[[], Tensor]:
    """Take per-sample gradients from BackPACK's `BatchGrad`, then one product a parameter.

    Args:
        case: Network and batch; the network is copied.

    Returns:
        The call.
    """
    from backpack import backpack, extend  # pyright: ignore[reportMissingImports]
    from backpack.extensions import BatchGrad  # pyright: ignore[reportMissingImports]

    extended: Any = extend(copy.deepcopy(case.model))

    def call() -> Tensor:
        with backpack(BatchGrad()):
            case.loss(extended, case.batch).sum().backward()
        return _gramian_of_rows(extended, "grad_batch")

    return call


def torchjd_gramian(case: Case) -> Callable[[], Tensor]:
    """Compute the Gramian with TorchJD's autogram engine, which is made for it.

    Args:
        case: Network and batch; the network is copied.

    Returns:
        The call.
    """
    from torchjd.autogram import Engine  # pyright: ignore[reportMissingImports]

    model = copy.deepcopy(case.model)
    engine: Any = Engine(model, batch_dim=0)
    return lambda: engine.compute_gramian(case.loss(model, case.batch))


_PEERS: dict[str, Callable[[Case], Callable[[], Tensor]]] = {
    "opacus": opacus_gramian,
    "torchjd": torchjd_gramian,
    "backpack": backpack_gramian,
}


def peer_names() -> tuple[str, ...]:
    """Name the libraries, by what is imported.

    Returns:
        The names.
    """
    return tuple(_PEERS)


def missing_peers(names: Iterable[str]) -> tuple[str, ...]:
    """Tell which libraries are not installed.

    Args:
        names: Names of libraries.

    Returns:
        The missing ones.

    Raises:
        UserError: If a name is none of `peer_names()`.
    """
    names = tuple(names)
    for name in names:
        if name not in _PEERS:
            raise unknown_name("peer", name, _PEERS)
    return tuple(name for name in names if importlib.util.find_spec(name) is None)


def peer_gramian(name: str, case: Case) -> Callable[[], Tensor]:
    """Make a call that computes the Gramian of single samples with another library.

    Args:
        name: One of `peer_names()`.
        case: Network and batch.

    Returns:
        The call. The library meets the network when it is first called, so that a network which
        it refuses fails there.
    """
    made: list[Callable[[], Tensor]] = []

    @wraps(_PEERS[name])
    def call() -> Tensor:
        with warnings.catch_warnings():
            # They warn about torch's future, which is not what is measured.
            warnings.simplefilter("ignore")
            if not made:
                made.append(_PEERS[name](case))
            return made[0]()

    return call


def _gramian_of_rows(model: nn.Module, attribute: str) -> Tensor:
    """Add up the products of each parameter's rows, and let go of rows and gradients."""
    parts = []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        rows = getattr(p, attribute, None)
        if rows is None:
            raise RuntimeError(f"no per-sample gradient of {name}")
        flat = rows.flatten(1)
        parts.append(flat @ flat.T)
        setattr(p, attribute, None)
        p.grad = None
    return torch.stack(parts).sum(0)
