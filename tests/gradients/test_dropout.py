from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from gradient_cases import VOCABULARY, batch, loss, plain_rows, relative
from torch import Tensor, nn

from gafscope.gradients import gramian, microbatch_gradients, supervised
from gafscope.models import gpt, mlp, vit

ENGINES = ["loop", "vmap"]


class MaskedMLP(nn.Module):
    """Dropout whose masks come with the batch, so that both engines use the same ones."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(192, 8)
        self.second = nn.Linear(8, 5)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        hidden = self.first(inputs["images"].flatten(1)).relu()
        return self.second(2 * hidden * inputs["mask"])


def masked_batch(n: int) -> tuple[dict[str, Tensor], Tensor]:
    images, targets = batch("mlp", n, torch.float64)
    mask = torch.randint(2, (n, 8), generator=torch.Generator().manual_seed(2))
    return {"images": images, "mask": mask}, targets


@pytest.mark.parametrize("k", [3, 12])
def test_engines_agree_under_the_same_injected_masks(k):
    torch.manual_seed(0)
    model, data = MaskedMLP().double(), masked_batch(12)
    expected = plain_rows(model, loss, data, k)
    for engine in ENGINES:
        rows = microbatch_gradients(model, loss, data, k, engine=engine)
        assert relative(rows.named, expected) < 1e-10


def twins(n: int, shape: tuple[int, ...] = (3, 8, 8)) -> tuple[Tensor, Tensor]:
    """Two identical halves."""
    half = torch.randn(n, *shape, generator=torch.Generator().manual_seed(3))
    return torch.cat([half, half]), torch.arange(n).remainder(5).repeat(2)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("n", [1, 4])
def test_identical_microbatches_draw_different_masks(engine, n):
    model = mlp(192, (64,), 5, dropout=0.5)
    distance = gramian(model, loss, twins(n), 2, engine=engine, seed=0).cosine_distance()
    assert distance[0, 1] > 0.01
    model.eval()
    distance = gramian(model, loss, twins(n), 2, engine=engine, seed=0).cosine_distance()
    assert distance[0, 1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_transformers_draw_different_masks_as_well(engine):
    images = gramian(
        vit(5, image_size=8, patch_size=4, dim=8, depth=1, heads=2, dropout=0.3),
        loss,
        twins(3),
        2,
        engine=engine,
    )
    assert images.cosine_distance()[0, 1] > 0.01
    tokens = torch.arange(6).repeat(4, 1)
    text = gramian(
        gpt(VOCABULARY, context=8, dim=8, depth=1, heads=2, dropout=0.3),
        supervised(F.cross_entropy),
        (tokens, tokens),
        2,
        engine=engine,
    )
    assert text.cosine_distance()[0, 1] > 0.01


@pytest.mark.parametrize("engine", ENGINES)
def test_one_seed_one_result(engine):
    model, data = mlp(192, (16,), 5, dropout=0.5), batch("mlp", 12)

    def measure(seed: int | None) -> Tensor:
        return microbatch_gradients(model, loss, data, 4, engine=engine, seed=seed).flat()

    assert torch.equal(measure(7), measure(7))
    assert not torch.equal(measure(7), measure(1007))
    torch.manual_seed(5)
    global_state = measure(None)
    torch.rand(10)
    assert not torch.equal(measure(None), global_state)
    torch.manual_seed(5)
    assert torch.equal(measure(None), global_state)
    matrix = gramian(model, loss, data, 4, engine=engine, seed=7).matrix
    torch.testing.assert_close(matrix, measure(7).double() @ measure(7).double().T)


@pytest.mark.parametrize("engine", ENGINES)
def test_masks_are_right_on_average(engine):
    # 300 draws of one sample's gradient average to the gradient without dropout (linear model).
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 1, bias=False))
    inputs = torch.randn(1, 6, generator=torch.Generator().manual_seed(0)).repeat(3000, 1)
    rows = microbatch_gradients(model, lambda m, x: m(x).squeeze(1), inputs, engine=engine, seed=0)
    # Each number of a row is 0 or twice the input.
    share = (rows.named["1.weight"][:, 0] != 0).double().mean(0)
    torch.testing.assert_close(share, torch.full((6,), 0.5, dtype=torch.float64), rtol=0, atol=0.05)
    torch.testing.assert_close(rows.named["1.weight"].mean(0)[0], inputs[0], rtol=0.15, atol=0)
