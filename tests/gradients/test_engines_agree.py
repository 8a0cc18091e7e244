"""Both engines against one `backward` a microbatch, on every reference model."""

from __future__ import annotations

import pytest
import torch
from gradient_cases import MODELS, batch, loss, make, plain_rows, relative

from gafscope.gradients import gramian, microbatch_gradients

PER_SAMPLE = [name for name in MODELS if not name.endswith("batch")]
every_precision = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["f32", "f64"]
)


@pytest.mark.parametrize("name", MODELS)
@every_precision
def test_microbatches_in_training_mode(name, dtype, tolerance):
    model, data = make(name, dtype), batch(name, 12, dtype)
    expected = plain_rows(model, loss, data, 3)
    for engine in ("loop", "vmap"):
        rows = microbatch_gradients(model, loss, data, 3, engine=engine)
        assert rows.engine == engine
        assert rows.k == 3
        assert relative(rows.named, expected) < tolerance


@pytest.mark.parametrize("name", PER_SAMPLE)
@every_precision
def test_single_samples(name, dtype, tolerance):
    model, data = make(name, dtype), batch(name, 4, dtype)
    expected = plain_rows(model, loss, data, 4)
    for engine in ("loop", "vmap"):
        rows = microbatch_gradients(model, loss, data, engine=engine)
        assert relative(rows.named, expected) < tolerance


@pytest.mark.parametrize("name", ["mlp-batch", "cnn-batch", "resnet-batch", "resnet-pre-batch"])
@pytest.mark.parametrize("k", [2, 4])
def test_evaluation_mode_uses_the_running_statistics(name, k):
    model, data = make(name, torch.float64), batch(name, 4, torch.float64)
    for _ in range(3):
        model(3 * data[0] + 1)
    model.eval()
    expected = plain_rows(model, loss, data, k)
    for engine in ("loop", "vmap"):
        rows = microbatch_gradients(model, loss, data, k, engine=engine)
        assert relative(rows.named, expected) < 1e-10


@pytest.mark.parametrize("name", ["mlp-batch", "vit", "gpt"])
@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_the_gramian_is_that_of_the_rows(name, engine):
    model, data = make(name, torch.float64), batch(name, 12, torch.float64)
    found = gramian(model, loss, data, 6, engine=engine)
    rows = plain_rows(model, loss, data, 6)
    assert list(found.layers) == list(rows)
    for layer, matrix in found.layers.items():
        flat = rows[layer].flatten(1)
        torch.testing.assert_close(matrix, flat @ flat.T, rtol=1e-9, atol=1e-12)
    total = torch.stack(list(found.layers.values())).sum(0)
    torch.testing.assert_close(found.matrix, total, rtol=1e-12, atol=1e-15)
    assert found.engine == engine
    assert found.matrix.dtype == torch.float64
    assert torch.equal(found.matrix, found.matrix.T)


def test_all_samples_in_one_microbatch():
    model, data = make("mlp"), batch("mlp", 6)
    for engine in ("loop", "vmap", "auto"):
        rows = microbatch_gradients(model, loss, data, 1, engine=engine)
        assert relative(rows.named, plain_rows(model, loss, data, 1)) < 1e-5
        assert gramian(model, loss, data, 1, engine=engine).matrix.shape == (1, 1)


@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_channels_last_inputs_and_weights(engine):
    model, data = make("cnn", torch.float64), batch("cnn", 6, torch.float64)
    expected = plain_rows(model, loss, data, 3)
    last = data[0].to(memory_format=torch.channels_last), data[1]
    rows = microbatch_gradients(
        model.to(memory_format=torch.channels_last), loss, last, 3, engine=engine
    )
    assert relative(rows.named, expected) < 1e-10
    matrix = rows.flat() @ rows.flat().T
    torch.testing.assert_close(rows.gramian().matrix, matrix)


@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_measuring_inside_no_grad(engine):
    model, data = make("mlp"), batch("mlp", 6)
    with torch.no_grad():
        rows = microbatch_gradients(model, loss, data, 3, engine=engine)
        assert not torch.is_grad_enabled()
    assert relative(rows.named, plain_rows(model, loss, data, 3)) < 1e-5


@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_rows_carry_no_graph_even_where_inputs_require_gradients(engine):
    model, (inputs, targets) = make("mlp"), batch("mlp", 6)
    inputs.requires_grad_()
    temperature = torch.ones((), requires_grad=True)
    rows = microbatch_gradients(
        model, lambda m, b: loss(m, b) * temperature, (inputs, targets), 3, engine=engine
    )
    assert not any(part.requires_grad for part in rows.named.values())
    assert inputs.grad is None
    assert temperature.grad is None
    assert relative(rows.named, plain_rows(model, loss, (inputs.detach(), targets), 3)) < 1e-5
