"""Every sample draws its own masks; a seed gives one result, to the bit."""

from __future__ import annotations

import ghost_cases
import pytest
import torch
from ghost_cases import check, make, normal, waves
from torch import Tensor, nn

from gafscope.gradients import gramian
from gafscope.models import mlp

MODELS = {
    "dropout": lambda p: nn.Sequential(nn.Linear(8, 64), nn.Dropout(p), nn.Linear(64, 4)),
    "alpha dropout": lambda p: nn.Sequential(
        nn.Linear(8, 64), nn.AlphaDropout(p), nn.Linear(64, 4)
    ),
    "transformer": lambda p: nn.TransformerEncoderLayer(8, 2, 16, dropout=p, batch_first=True),
    "lstm": lambda p: nn.LSTM(8, 16, 2, dropout=p, batch_first=True),
}


def twins(n: int) -> Tensor:
    return normal(5, 8)(1).expand(n, -1, -1).clone()


def measure(model: nn.Module, batch: Tensor, seed: int | None = 0, k: int | None = None) -> Tensor:
    return gramian(model, waves, batch, k, engine=ghost_cases.ENGINE, seed=seed).matrix


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("k", [None, 2])
def test_equal_samples_draw_different_masks(name, k):
    diagonal = measure(make(lambda: MODELS[name](0.5)), twins(4), k=k).diagonal()
    assert len(set(diagonal.tolist())) == len(diagonal)
    assert (diagonal.max() - diagonal.min()) / diagonal.mean() > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_without_dropout_equal_samples_are_equal(name):
    model = make(lambda: MODELS[name](0.0))
    matrix = measure(model, twins(4))
    torch.testing.assert_close(matrix, matrix[0, 0].expand(4, 4), rtol=1e-12, atol=0)
    check(model, normal(5, 8)(4))
    check(make(lambda: MODELS[name](0.5)).eval(), normal(5, 8)(4))


def test_one_seed_one_result():
    model, batch = make(lambda: mlp(40, (16,), 5, dropout=0.5)).float(), normal(5, 8)(6).float()
    for k in (None, 3):
        assert torch.equal(measure(model, batch, 7, k), measure(model, batch, 7, k))
        assert not torch.equal(measure(model, batch, 7, k), measure(model, batch, 8, k))
    torch.manual_seed(5)
    first = measure(model, batch, None)
    assert torch.equal(measure(model, batch, None), first)
    torch.rand(3)
    assert not torch.equal(measure(model, batch, None), first)


def test_the_first_measurement_is_the_same_as_later_ones():
    # Probes and self-checks of the first use must not shift the draws.
    batch = normal(5, 8)(6)
    model, again = (make(lambda: MODELS["dropout"](0.5)) for _ in range(2))
    measure(again, batch[:4], 3)
    assert torch.equal(measure(model, batch, 7), measure(again, batch, 7))
    assert torch.equal(measure(model, batch, 7), measure(model, batch, 7))


def test_masks_are_right_on_average():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 1, bias=False))
    inputs = torch.ones(400, 6)
    matrix = gramian(
        model, lambda m, x: m(x).squeeze(1), inputs, engine=ghost_cases.ENGINE, seed=0
    ).matrix
    # <g_i, g_j> = sum over inputs of 4 b_i b_j: 12 for i = j, 6 for two sets of masks.
    assert matrix.diagonal().mean() == pytest.approx(12, rel=0.05)
    off = matrix - torch.diag(matrix.diagonal())
    assert float(off.sum()) / (400 * 399) == pytest.approx(6, rel=0.05)


def test_masks_that_come_with_the_batch():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.b(2 * self.a(batch["x"]).relu() * batch["mask"])

    mask = torch.randint(2, (6, 16), generator=torch.Generator().manual_seed(3))
    check(make(Masked), {"x": normal(8)(6), "mask": mask})
