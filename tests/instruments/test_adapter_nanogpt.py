"""A loop as nanoGPT's train.py has it, and two more lines."""

from __future__ import annotations

import contextlib
import copy
import math

import pytest
import torch
from adapted_loops import assert_gramians, is_unhooked
from torch import nn
from watched_loops import same, state_of

from gafscope.gradients import gramian, supervised
from gafscope.instruments import watch
from gafscope.models import gpt

gradient_accumulation_steps, max_iters, batch_size, block_size = 4, 4, 3, 8
learning_rate, min_lr, warmup_iters, grad_clip = 1e-2, 1e-3, 2, 1.0


class GPT(nn.Module):
    """Returns logits and loss, as nanoGPT's model does."""

    def __init__(self):
        super().__init__()
        self.transformer = gpt(30, context=block_size, dim=16, depth=2, heads=2, tie_weights=True)

    def forward(self, idx, targets=None):
        logits = self.transformer(idx)
        if targets is None:
            return logits, None
        return logits, nn.functional.cross_entropy(logits.view(-1, 30), targets.reshape(-1))

    def configure_optimizers(self):
        decay = [p for p in self.parameters() if p.dim() >= 2]
        rest = [p for p in self.parameters() if p.dim() < 2]
        groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95))


def get_lr(it):
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    ratio = (it - warmup_iters) / (max_iters - warmup_iters)
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (learning_rate - min_lr)


def loop(watched=False):
    """Train; give the state, the scope, and the model and the microbatches of every step."""
    torch.manual_seed(1)
    data = torch.randint(30, (200,))
    model, before, seen = GPT(), [], []
    optimizer = model.configure_optimizers()
    scaler = torch.amp.GradScaler("cpu", enabled=False)

    def get_batch():
        ix = torch.randint(len(data) - block_size, (batch_size,))
        x = torch.stack([data[i : i + block_size] for i in ix])
        y = torch.stack([data[i + 1 : i + 1 + block_size] for i in ix])
        seen.append((x, y))
        return x, y

    X, Y = get_batch()
    iter_num = 0
    scope = watch(model, optimizer, every=1) if watched else contextlib.nullcontext()
    with scope:
        while True:
            lr = get_lr(iter_num)
            for param_group in optimizer.param_groups:
                param_group["lr"] = lr
            if not watched:
                before.append(copy.deepcopy(model))
            for _micro_step in range(gradient_accumulation_steps):
                _logits, loss = model(X, Y)
                loss = loss / gradient_accumulation_steps
                X, Y = get_batch()
                scaler.scale(loss).backward()
            if grad_clip != 0.0:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            iter_num += 1
            if iter_num >= max_iters:
                break
    assert is_unhooked(model, optimizer)
    return state_of(model, optimizer), scope, before, seen


def test_the_loop_is_measured_and_not_changed():
    without, _, before, seen = loop()
    state, scope, _, _ = loop(watched=True)
    assert same(without, state)
    loss, right, k = supervised(nn.functional.cross_entropy), [], gradient_accumulation_steps
    for step, model in enumerate(before):
        batch = tuple(torch.cat(part) for part in zip(*seen[k * step : k * step + k], strict=True))
        right.append(gramian(model.transformer, loss, batch, microbatches=k, engine="loop"))
    assert_gramians(scope.run, right, scale=1 / k, prefix="transformer.")
    assert scope.run.scalars.lr.tolist() == pytest.approx([get_lr(i) for i in range(max_iters)])
