"""memory="ghost": the Gramian of the microbatches, from the loop's own passes, without a row."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from watched_loops import batches, network, same, sgd, state_of

from gafscope.gradients import gramian, supervised
from gafscope.instruments import watch
from gafscope.instruments.ghost_rows import GhostRows
from gafscope.models import gpt, mlp, vit

LOSS = supervised(nn.functional.cross_entropy)
K, U = 4, 3


def pictures(size):
    def make(n, generator):
        inputs = torch.randn(n, 3, size, size, generator=generator)
        return inputs, torch.randint(4, (n,), generator=generator)

    return make


def text(n, generator):
    tokens = torch.randint(20, (n, 9), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


CASES = {
    "mlp": (lambda: mlp(3 * 16, [20, 12], 4), pictures(4)),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, stride=2),
            nn.GroupNorm(2, 8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 12, 3, groups=2),
            nn.GroupNorm(3, 12),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, 4),
        ),
        pictures(16),
    ),
    "vit": (lambda: vit(4, dim=16, depth=2, heads=2), pictures(32)),
    "gpt": (lambda: gpt(20, context=8, dim=16, depth=2, heads=2, tie_weights=True), text),
}


def setting(case, steps=2, dtype=torch.float32):
    make, draw = CASES[case]
    torch.manual_seed(0)
    model = make().to(dtype)
    generator = torch.Generator().manual_seed(1)
    data = [[draw(U, generator) for _ in range(K)] for _ in range(steps)]
    if draw is not text:
        data = [[(x.to(dtype), y) for x, y in parts] for parts in data]
    return model, data


def step_on(model, optimizer, parts, *, divide=True, in_between=lambda: None):
    for part in parts:
        loss = LOSS(model, part).mean()
        in_between()
        (loss / len(parts) if divide else loss).backward()
    optimizer.step()
    optimizer.zero_grad()


def joined(parts):
    return tuple(torch.cat(leaves) for leaves in zip(*parts, strict=True))


def assert_close(found, right, tolerance):
    right = np.asarray(right)
    scale = np.abs(right).max()
    np.testing.assert_allclose(found, right, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize(
    ("dtype", "tolerance", "divide"),
    [(torch.float64, 1e-9, True), (torch.float32, 1e-6, False)],
)
@pytest.mark.parametrize("case", CASES)
def test_the_gramians_are_those_of_gramian_on_the_loops_scale(case, dtype, tolerance, divide):
    model, data = setting(case, dtype=dtype)
    bare = copy.deepcopy(model)
    optimizer, bare_optimizer = sgd(model), sgd(bare)
    scale = K**2 if divide else 1
    with watch(model, optimizer, every=1, memory="ghost") as scope:
        for step, parts in enumerate(data):
            right = gramian(bare, LOSS, joined(parts), microbatches=K, engine="loop")
            step_on(bare, bare_optimizer, parts, divide=divide)
            step_on(model, optimizer, parts, divide=divide)
            assert_close(scope.run.matrix(step), right.matrix / scale, tolerance)
            for name, layer in right.layers.items():
                if layer.abs().max() > 1e-6 * right.matrix.abs().max():
                    assert_close(scope.run.matrix(step, name), layer / scale, 10 * tolerance)
    assert same(state_of(bare, bare_optimizer), state_of(model, optimizer))


def test_what_waits_are_inputs_and_output_gradients():
    model = nn.Sequential(nn.Linear(300, 200, bias=False), nn.ReLU(), nn.Linear(200, 3))
    optimizer = sgd(model)
    with watch(model, optimizer, every=1, memory="ghost") as scope:
        for x in torch.randn(K, U, 300):
            model(x).square().mean().backward()
        assert isinstance(scope._hooked, GhostRows)
        pieces = [p for c in scope._hooked._collected for own in c.pieces.values() for p in own]
        assert sum(p.nbytes for p in pieces) == 4 * K * (U * (300 + 200 + 200 + 3) + 3)
        collected = list(scope._hooked._collected)
        optimizer.step()
        assert not any(c.pieces or c.derived for c in collected)


def test_a_smaller_last_microbatch_and_texts_of_other_lengths():
    torch.manual_seed(0)
    model = gpt(20, context=8, dim=16, depth=1, heads=2, tie_weights=True).double()
    optimizer = sgd(model)
    generator = torch.Generator().manual_seed(1)
    parts = []
    for n, length in [(3, 8), (3, 8), (2, 5), (1, 7)]:
        tokens = torch.randint(20, (n, length + 1), generator=generator)
        parts.append((tokens[:, :-1], tokens[:, 1:]))
    rows = []
    for part in parts:
        loss = LOSS(model, part).mean() / 4
        grads = torch.autograd.grad(loss, [*model.parameters()])
        rows.append(torch.cat([g.flatten() for g in grads]))
    right = torch.stack(rows) @ torch.stack(rows).T
    with watch(model, optimizer, every=1, memory="ghost") as scope:
        step_on(model, optimizer, parts)
    assert_close(scope.run.matrix(0), right, 1e-9)


class Derived(nn.Module):
    """Uses tensors made of its parameters alone; which part of them, the input's width says."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Embedding(9, 5)
        self.length, self.direction = nn.Parameter(torch.rand(4)), nn.Parameter(torch.randn(4, 5))
        self.table = nn.Parameter(torch.randn(6, 5))
        self.inner = nn.utils.parametrizations.spectral_norm(nn.Linear(5, 5))

    def forward(self, x):
        places = self.positions(torch.tensor([0, 3, 3, 8])).exp()
        weight = self.length[:, None] * self.direction / self.direction.norm(dim=1, keepdim=True)
        width = x.shape[1]
        hidden = (
            (self.inner(x)[:, None] + places).tanh().mean(1)
            if width == 5
            else x @ self.table[:width]
        )
        hidden = hidden + x[:, :3] @ self.table[width - 3 : width]
        return hidden @ weight.T + (hidden[:, :4] * weight[:, 1]).square()


@pytest.mark.parametrize("widths", [(5, 5, 5), (4, 5, 3)])
def test_tensors_made_of_parameters_alone_are_those_of_each_pass(widths):
    torch.manual_seed(0)
    model = Derived().double()
    twin = copy.deepcopy(model)
    optimizer = sgd(model)
    parts = [(torch.randn(U, n).double(), torch.arange(U) % 4) for n in widths]
    rows = []
    for part in parts:
        # The power iteration of the spectral norm moves on at every call.
        grads = torch.autograd.grad(
            LOSS(twin, part).mean() / len(parts),
            [*twin.parameters()],
            materialize_grads=True,
            allow_unused=True,
        )
        rows.append(torch.cat([g.flatten() for g in grads]))
    right = torch.stack(rows) @ torch.stack(rows).T
    with watch(model, optimizer, every=1, memory="ghost") as scope:
        step_on(model, optimizer, parts)
    assert_close(scope.run.matrix(0), right, 1e-9)


class Window(nn.Module):
    """Each call uses another part of one weight, by the very same functions."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(6, 5))

    def forward(self, x, start):
        return x @ self.table[start : start + 3]


def test_parts_that_move_from_call_to_call():
    torch.manual_seed(0)
    model = Window().double()
    optimizer = sgd(model)
    inputs, starts, rows = torch.randn(3, U, 3).double(), (0, 2, 3), []
    for x, start in zip(inputs, starts, strict=True):
        (grad,) = torch.autograd.grad(model(x, start).square().mean(), [model.table])
        rows.append(grad.flatten())
    with watch(model, optimizer, every=1, memory="ghost") as scope:
        for x, start in zip(inputs, starts, strict=True):
            model(x, start).square().mean().backward()
        optimizer.step()
    assert_close(scope.run.matrix(0), torch.stack(rows) @ torch.stack(rows).T, 1e-9)


def test_a_switch_that_sends_microbatches_along_other_paths():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x, twice=False):
            x = self.b(self.a(self.a(x))) if twice else self.b(self.a(x))
            return x + self.a.weight[0] if twice else x * self.b.weight[:2].sum()

    torch.manual_seed(0)
    model = Model().double()
    optimizer = sgd(model)
    inputs, rows = torch.randn(4, U, 4).double(), []
    for x, twice in zip(inputs, (False, True, True, False), strict=True):
        loss = model(x, twice=twice).square().mean()
        grads = torch.autograd.grad(loss, [*model.parameters()])
        rows.append(torch.cat([g.flatten() for g in grads]))
    with watch(model, optimizer, every=1, memory="ghost") as scope:
        for x, twice in zip(inputs, (False, True, True, False), strict=True):
            model(x, twice=twice).square().mean().backward()
        optimizer.step()
    assert_close(scope.run.matrix(0), torch.stack(rows) @ torch.stack(rows).T, 1e-9)


def test_a_layer_that_some_microbatches_do_not_reach():
    torch.manual_seed(0)
    model = nn.ModuleDict({"body": nn.Linear(5, 4), "a": nn.Linear(4, 2), "b": nn.Linear(4, 2)})
    model.forward = lambda x: (lambda h: (model["a"](h), model["b"](h)))(model["body"](x).tanh())
    model.double()
    optimizer = sgd(model)
    inputs = torch.randn(3, U, 5).double()
    heads = (0, 1, 0)
    rows = []
    for x, head in zip(inputs, heads, strict=True):
        loss = model(x)[head].square().mean()
        grads = torch.autograd.grad(
            loss, [*model.parameters()], materialize_grads=True, allow_unused=True
        )
        rows.append(torch.cat([g.flatten() for g in grads]))
    with watch(model, optimizer, every=1, memory="ghost") as scope:
        for x, head in zip(inputs, heads, strict=True):
            model(x)[head].square().mean().backward()
        optimizer.step()
    assert_close(scope.run.matrix(0), torch.stack(rows) @ torch.stack(rows).T, 1e-9)


def test_dropout_masks_are_the_loops_own():
    states, matrices = [], []
    for memory in ("rows", "ghost"):
        torch.manual_seed(3)
        model = gpt(20, context=8, dim=16, depth=1, heads=2, dropout=0.3, tie_weights=True)
        optimizer = sgd(model)
        data = setting("gpt", steps=3)[1]
        torch.manual_seed(4)
        with watch(model, optimizer, every=2, memory=memory) as scope:
            for parts in data:
                step_on(model, optimizer, parts)
        assert scope.run.recorded_steps == [0, 2]
        states.append((state_of(model, optimizer), torch.rand(3)))
        matrices.append([scope.run.matrix(step) for step in (0, 2)])
    assert same(*states)
    for found, right in zip(*matrices, strict=True):
        assert_close(found, right, 1e-6)


class Contrastive(nn.Sequential):
    def forward(self, input):
        outputs = super().forward(input)
        return outputs - outputs.mean(0)


@pytest.mark.parametrize("u", [1, 3])
def test_samples_that_depend_on_each_other_and_single_ones(u):
    model = Contrastive(*network()) if u > 1 else network()
    bare = copy.deepcopy(model)
    optimizer = sgd(model)
    (parts,) = batches(1, K, u=u)
    right = gramian(bare, LOSS, joined(parts), microbatches=K, engine="loop")
    with watch(model, optimizer, every=1, memory="ghost") as scope:
        step_on(model, optimizer, parts)
        assert len(scope._splitter._plans) == 1
    assert_close(scope.run.matrix(0), right.matrix / K**2, 1e-6)


def test_validation_in_between_and_batch_norm_in_evaluation_mode():
    model = network(norm=True).eval()
    bare = copy.deepcopy(model)
    optimizer = sgd(model)
    (parts,) = batches(1, K, u=U)
    right = gramian(bare, LOSS, joined(parts), microbatches=K, engine="loop")

    def validate():
        with torch.no_grad():
            model(parts[0][0][:2])

    with watch(model, optimizer, every=1, memory="ghost") as scope:
        step_on(model, optimizer, parts, in_between=validate)
    assert_close(scope.run.matrix(0), right.matrix / K**2, 1e-6)


def test_a_call_that_no_backward_follows_is_forgotten():
    model = network()
    optimizer = sgd(model)
    (parts,) = batches(1, K, u=U)
    right = gramian(model, LOSS, joined(parts), microbatches=K, engine="loop")
    with watch(model, optimizer, every=1, memory="ghost") as scope:
        for inputs, labels in parts:
            model(inputs[:2])
            (nn.functional.cross_entropy(model(inputs), labels) / K).backward()
        optimizer.step()
    assert_close(scope.run.matrix(0), right.matrix / K**2, 1e-6)


def test_what_zero_grad_empties_without_a_step_is_forgotten():
    model = network()
    optimizer = sgd(model)
    parts, others = batches(2, K, u=U)
    right = gramian(model, LOSS, joined(parts), microbatches=K, engine="loop")
    with watch(model, optimizer, every=1, memory="ghost") as scope:
        for inputs, labels in others[:3]:
            nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.zero_grad()
        step_on(model, optimizer, parts)
    assert_close(scope.run.matrix(0), right.matrix / K**2, 1e-6)


def test_a_scalers_factor_is_taken_out():
    model = network()
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    (parts,) = batches(1, K, u=U)
    right = gramian(model, LOSS, joined(parts), microbatches=K, engine="loop")
    with watch(model, optimizer, every=1, memory="ghost", scaler=scaler) as scope:
        for part in parts:
            scaler.scale(LOSS(model, part).mean()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert_close(scope.run.matrix(0), right.matrix, 1e-6)


def test_a_row_that_is_not_finite_is_named_and_spoils_no_other():
    model = network()
    optimizer = sgd(model, lr=0.0)
    (parts,) = batches(1, K, u=U)
    right = gramian(model, LOSS, joined(parts), microbatches=K, engine="loop").matrix / K**2
    parts[1] = (torch.full_like(parts[1][0], torch.inf), parts[1][1])
    with watch(model, optimizer, every=1, memory="ghost") as scope:
        step_on(model, optimizer, parts)
    assert scope.run.scalars.not_finite[0] == [1]
    others = [0, 2, 3]
    found = scope.run.matrix(0)[np.ix_(others, others)]
    assert_close(found, right[others][:, others], 1e-6)


def test_autocast_rounds_the_loops_gradients_and_not_much_else():
    model, data = setting("gpt", steps=1)
    matrices, states = [], []
    for memory in ("rows", "ghost"):
        twin = copy.deepcopy(model)
        optimizer = sgd(twin)
        with watch(twin, optimizer, every=1, memory=memory) as scope:
            for tokens, targets in data[0]:
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    logits = twin(tokens)
                    loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
                loss.backward()
            optimizer.step()
        matrices.append(scope.run.matrix(0))
        states.append(state_of(twin, optimizer))
    assert same(*states)
    assert_close(matrices[1], matrices[0], 1e-3)
