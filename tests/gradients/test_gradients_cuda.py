"""The core of the gradient tests on an NVIDIA GPU: `pytest -m cuda`."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import torch
from gradient_cases import MODELS, batch, loss, make, plain_rows, relative
from torch import nn

from gafscope.aggregation import GAF, Mean
from gafscope.errors import UserError
from gafscope.geometry import StreamingProducts, cosine_distance, cross_gramian
from gafscope.geometry import gramian as row_gramian
from gafscope.gradients import gramian, microbatch_gradients
from gafscope.models import mlp

pytestmark = pytest.mark.cuda
ENGINES = ["loop", "vmap"]


@pytest.fixture(autouse=True)
def gpu() -> Iterator[torch.device]:
    if not torch.cuda.is_available():
        pytest.skip("there is no NVIDIA GPU")
    # Convolutions in TF32 would hide an error of 1e-5; matrix products are float32 by default.
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield torch.device("cuda")
    torch.backends.cudnn.allow_tf32 = allowed


def on_gpu(name: str, n: int, dtype: torch.dtype = torch.float32):
    inputs, targets = batch(name, n, dtype)
    return make(name, dtype).cuda(), (inputs.cuda(), targets.cuda())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_engines_agree_with_one_backward_a_microbatch(name, engine, dtype, tolerance):
    model, data = on_gpu(name, 12, dtype)
    rows = microbatch_gradients(model, loss, data, 3, engine=engine)
    assert relative(rows.named, plain_rows(model, loss, data, 3)) < tolerance
    assert {row.device.type for row in rows.named.values()} == {"cuda"}


@pytest.mark.parametrize("name", ["mlp", "cnn", "vit", "gpt"])
def test_the_gpu_measures_what_the_processor_measures(name):
    model, data = on_gpu(name, 12, torch.float64)
    there = gramian(model, loss, data, 4)
    here = gramian(make(name, torch.float64), loss, batch(name, 12, torch.float64), 4)
    torch.testing.assert_close(there.matrix.cpu(), here.matrix, rtol=1e-9, atol=1e-12)
    assert there.matrix.is_cuda
    decided = GAF(0.97)(there)
    assert torch.equal(decided.weights, GAF(0.97)(here).weights)
    assert not decided.weights.is_cuda
    update = microbatch_gradients(model, loss, data, 4).combine(Mean()(there).weights)
    whole = microbatch_gradients(model, loss, data, 1).named
    for name, part in update.items():
        torch.testing.assert_close(part, whole[name][0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("k", [2, 16])
def test_distances_of_a_millionth(k, tf32, autocast):
    generator = torch.Generator("cuda").manual_seed(0)
    rows = torch.randn(k, 5_000_000, device="cuda", generator=generator)
    rows[1:] = rows[0] + 1.4e-3 * rows[1:]
    wide = rows[:2].double()
    expected = 1 - torch.dot(wide[0], wide[1]) / wide[0].norm() / wide[1].norm()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        with torch.autocast("cuda", enabled=autocast):
            matrix = row_gramian(rows)
            cross = cross_gramian(rows[:1], rows[1:])
            _, streamed = StreamingProducts()([rows[0]], [rows[1]])
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(cosine_distance(matrix)[0, 1], expected, rtol=0.01, atol=0)
    torch.testing.assert_close(cross[0, 0], matrix[0, 1], rtol=1e-12, atol=0)
    assert streamed == pytest.approx(float(matrix[0, 1]), rel=1e-8)


@pytest.mark.parametrize("engine", ENGINES)
def test_dropout_and_the_random_state(engine):
    model = mlp(192, (64,), 5, dropout=0.5).cuda()
    half = torch.randn(4, 3, 8, 8)
    data = (torch.cat([half, half]).cuda(), torch.arange(4).repeat(2).cuda())
    before = torch.get_rng_state(), torch.cuda.get_rng_state()
    found = gramian(model, loss, data, 2, engine=engine, seed=1)
    assert found.cosine_distance()[0, 1] > 0.01
    assert torch.equal(gramian(model, loss, data, 2, engine=engine, seed=1).matrix, found.matrix)
    assert torch.equal(before[0], torch.get_rng_state())
    assert torch.equal(before[1], torch.cuda.get_rng_state())


@pytest.mark.parametrize("engine", ENGINES)
def test_running_statistics_stay(engine):
    model, data = on_gpu("cnn-batch", 8)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    gramian(model, loss, data, 2, engine=engine)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_with_the_loop(dtype):
    model, data = on_gpu("vit", 8)
    with torch.autocast("cuda", dtype):
        expected = plain_rows(model, loss, data, 2)
        rows = microbatch_gradients(model, loss, data, 2, engine="loop")
    assert relative(rows.named, expected) < 1e-2


@pytest.mark.parametrize("engine", ENGINES)
def test_a_budget_is_kept(engine):
    layers = [*(nn.Linear(1000, 1000) for _ in range(4)), nn.Linear(1000, 1)]
    model = nn.Sequential(*layers).double().cuda()
    data = torch.randn(32, 1000, device="cuda", dtype=torch.float64)

    def squares(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return model(x).square().squeeze(1)

    expected = gramian(model, squares, data, engine="loop").matrix
    with pytest.raises(UserError) as error:
        gramian(model, squares, data, engine=engine, memory_budget=1)
    need = int(re.findall(r"at least (\d+) bytes", str(error.value))[0])
    for factor in (2, 4):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        found = gramian(model, squares, data, engine=engine, memory_budget=factor * need)
        used = torch.cuda.max_memory_allocated() - before
        torch.testing.assert_close(found.matrix, expected, rtol=1e-8, atol=1e-11)
        # The products of a block take up to 100 MB of their own.
        assert used < 1.5 * factor * need + 1e8
