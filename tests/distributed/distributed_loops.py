"""A small noisy problem, its training loop on several ranks, and the same loop on one."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import gafscope as gs
from gafscope.gradients import GradientRows

FEATURES, CLASSES, U = 12, 5, 8
LOSS = nn.CrossEntropyLoss()


def network(norm=False, seed=0):
    torch.manual_seed(seed)
    middle = [nn.BatchNorm1d(24)] if norm else []
    return nn.Sequential(
        nn.Linear(FEATURES, 24), *middle, nn.Tanh(), nn.Linear(24, 16), nn.Linear(16, CLASSES)
    )


def sgd(model):
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)


def macrobatches(steps, k, seed=1):
    """Noisy labels: some rows agree, some do not."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(FEATURES, CLASSES, generator=generator)
    found = []
    for _ in range(steps):
        inputs = torch.randn(k * U, FEATURES, generator=generator)
        labels = (inputs @ truth).argmax(1)
        wrong = torch.rand(k * U, generator=generator) < 0.5
        drawn = torch.randint(CLASSES, (k * U,), generator=generator)
        found.append((inputs, torch.where(wrong, drawn, labels)))
    return found


def wrap(model, ranks, kind, **options):
    if kind == "ddp":
        return DistributedDataParallel(model, **options)
    mesh = init_device_mesh("cpu", (ranks,))
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def backward(model, batch, m, j, divided, kind):
    """Run one of a rank's m microbatches; only the last one synchronises under DDP."""
    inputs, labels = batch
    quiet = kind == "ddp" and j < m - 1
    if kind == "fsdp":
        model.set_is_last_backward(j == m - 1)
    with model.no_sync() if quiet else nullcontext():
        loss = LOSS(model(inputs), labels)
        (loss / m if divided else loss).backward()


def own_rows(batch, rank, m):
    """Give a rank's m microbatches of a macrobatch."""
    parts = [tensor.split(U)[rank * m : (rank + 1) * m] for tensor in batch]
    return list(zip(*parts, strict=True))


def train_on_ranks(
    rank, ranks, rule, steps=200, m=1, kind="ddp", norm=False, divided=True, **options
):
    """Train; give the accepted sets, the weights and, for the last step, the decision."""
    model = network(norm)
    wrapped = wrap(model, ranks, kind, **options.pop("wrapping", {}))
    optimizer = sgd(model)
    accepted = []
    with gs.distribute(wrapped, optimizer, rule, check_every=50, **options) as scope:
        for batch in macrobatches(steps, ranks * m):
            optimizer.zero_grad()
            for j, part in enumerate(own_rows(batch, rank, m)):
                backward(wrapped, part, m, j, divided, kind)
            optimizer.step()
            accepted.append(scope.decision.accepted)
    state = {name: whole(tensor) for name, tensor in model.state_dict().items()}
    return torch.stack(accepted), state, scope.decision


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.clone()


def train_alone(rule, k, steps=200, norm=False):
    """The slow and obvious reference: k backwards, one Gramian in float64, one step."""
    model = network(norm)
    optimizer, accepted = sgd(model), []
    for batch in macrobatches(steps, k):
        rows, states = [], [copy.deepcopy(model.state_dict())]
        for part in own_rows(batch, 0, k):
            optimizer.zero_grad()
            LOSS(model(part[0]), part[1]).backward()
            rows.append([parameter.grad for parameter in model.parameters()])
            states.append(copy.deepcopy(model.state_dict()))
        named = {str(j): torch.stack(parts) for j, parts in enumerate(zip(*rows, strict=True))}
        gradients = GradientRows(named)
        sequential = getattr(rule, "fold", None) is not None
        decision = rule(gradients.gramian())
        accepted.append(decision.accepted)
        optimizer.zero_grad()
        if decision.step:
            # The mean of what GAF accepts is a sum that is divided, not a weighted sum.
            kept = decision.accepted.double()
            update = gradients.combine(kept if sequential else decision.weights)
            for j, parameter in enumerate(model.parameters()):
                parameter.grad = update[str(j)] / (kept.sum().item() if sequential else 1.0)
            optimizer.step()
        if norm:
            move_statistics(model, states, decision.accepted.tolist())
    return torch.stack(accepted), model.state_dict()


def move_statistics(model, states, accepted):
    """Momentum 0.1: r <- 0.9 r + 0.1 batch, of the accepted microbatches only."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
                continue
            value.copy_(states[0][name])
            for i, taken in enumerate(accepted):
                if taken and name.endswith("tracked"):
                    value += 1
                elif taken:
                    value.copy_(0.9 * value + states[i + 1][name] - 0.9 * states[i][name])
