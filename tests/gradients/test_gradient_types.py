from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gradient_cases import batch, loss, make
from matplotlib.figure import Figure

from gafscope.errors import UserError
from gafscope.gradients import GradientRows, Gramian, gramian, microbatch_gradients


def some_rows(k: int = 4, dtype: torch.dtype = torch.float32) -> GradientRows:
    generator = torch.Generator().manual_seed(0)
    shapes = {"layer.weight": (3, 2), "layer.bias": (3,), "scale": ()}
    return GradientRows(
        {
            name: torch.randn(k, *shape, generator=generator).to(dtype)
            for name, shape in shapes.items()
        },
        engine="loop",
        notes=("a <b> note",),
    )


def test_flat_lays_the_parameters_end_to_end():
    rows = some_rows()
    assert rows.k == 4
    assert rows.flat().shape == (4, 10)
    for i in range(4):
        parts = [part[i].flatten() for part in rows.named.values()]
        assert torch.equal(rows.flat()[i], torch.cat(parts))
    rows.flat().zero_()
    assert rows.named["scale"].any()


def test_the_gramian_of_rows():
    rows = some_rows()
    found = rows.gramian()
    flat = rows.flat().double()
    torch.testing.assert_close(found.matrix, flat @ flat.T)
    assert list(found.layers) == list(rows.named)
    torch.testing.assert_close(sum(found.layers.values()), found.matrix)
    assert (found.engine, found.notes) == (rows.engine, rows.notes)
    whole = rows.gramian(layers=False)
    assert torch.equal(whole.matrix, found.matrix)
    assert whole.layers == {}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_combine_adds_the_rows_up_in_their_own_type(dtype):
    rows = some_rows(dtype=dtype)
    weights = torch.tensor([0.5, 0.0, 0.25, 0.25], dtype=torch.float64)
    update = rows.combine(weights)
    tolerance = {torch.float64: 1e-15, torch.float32: 1e-6}.get(dtype, 1e-2)
    for name, part in rows.named.items():
        assert update[name].dtype == dtype
        assert update[name].shape == part.shape[1:]
        expected = torch.tensordot(weights, part.double(), dims=1)
        torch.testing.assert_close(update[name].double(), expected, rtol=tolerance, atol=tolerance)


def test_combine_adds_half_precision_up_in_float32():
    rows = GradientRows({"w": torch.tensor([1.0] + [2.0**-9] * 255)[:, None].bfloat16()})
    update = rows.combine(torch.ones(256))
    # Added in bfloat16, every small one would vanish.
    assert float(update["w"]) == pytest.approx(1 + 255 / 512, rel=2**-8)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_combine_never_lets_a_dropped_row_through(bad):
    rows = some_rows()
    for part in rows.named.values():
        part[1] = bad
    update = rows.combine(torch.tensor([0.5, 0.0, 0.5, 0.0]))
    assert all(part.isfinite().all() for part in update.values())
    skipped = rows.combine(torch.zeros(4))
    assert all(not part.any() for part in skipped.values())
    assert not rows.combine(torch.tensor([0.5, -0.0, 0.5, 0.0]))["layer.bias"].isnan().any()


@pytest.mark.parametrize("shape", [(3,), (5,), (), (4, 1)])
def test_combine_takes_one_weight_a_row(shape):
    with pytest.raises(UserError, match=r"shape \(4,\)"):
        some_rows().combine(torch.ones(shape))


def test_combine_leaves_the_rows_as_they_are():
    rows = some_rows()
    before = rows.flat()
    rows.combine(torch.ones(4))["layer.weight"].zero_()
    assert torch.equal(rows.flat(), before)


def test_distances_of_the_whole_and_of_one_layer():
    rows = some_rows()
    found = rows.gramian()
    for layer, flat in [
        (None, rows.flat()),
        ("layer.weight", rows.named["layer.weight"].flatten(1)),
    ]:
        cosine = torch.nn.functional.cosine_similarity(flat[:, None], flat[None], dim=2)
        torch.testing.assert_close(
            found.cosine_distance(layer=layer), (1 - cosine).double(), rtol=1e-5, atol=1e-6
        )
    assert torch.equal(found.of(None), found.matrix)
    assert torch.equal(found.of("scale"), found.layers["scale"])


def test_a_wrong_layer_name_is_an_error_that_offers_the_nearest():
    found = some_rows().gramian()
    with pytest.raises(
        UserError, match=r"Unknown layer 'layer\.wieght'. Did you mean 'layer\.weight'"
    ):
        found.cosine_distance(layer="layer.wieght")
    with pytest.raises(UserError, match=r"holds no layers.*'scale'.*layers=True"):
        some_rows().gramian(layers=False).cosine_distance("scale")


def test_layers_are_kept_only_where_they_are_wanted():
    model, data = make("mlp"), batch("mlp", 6)
    with_layers, without = (
        gramian(model, loss, data, 3, layers=wanted) for wanted in (True, False)
    )
    assert without.layers == {}
    assert torch.equal(without.matrix, with_layers.matrix)
    assert list(with_layers.layers) == [name for name, _ in model.named_parameters()]


def test_the_sum_of_the_layers_does_not_share_memory_with_a_layer():
    found = gramian(torch.nn.Linear(3, 1, bias=False), lambda m, x: m(x).sum(1), torch.ones(2, 3))
    found.matrix.zero_()
    assert found.layers["weight"].any()


@pytest.mark.parametrize("shape", [(2, 3), (0, 0)])
def test_a_gramian_is_square_and_not_empty(shape):
    import inspect

    with pytest.raises(UserError, match="square matrix"):
        # Without the type checker of the tests, which would refuse it first.
        inspect.unwrap(Gramian.__post_init__)(Bare(torch.zeros(shape)))


class Bare:
    def __init__(self, matrix: torch.Tensor):
        object.__setattr__(self, "matrix", matrix)


def test_a_gramian_is_kept_in_float64():
    assert Gramian(torch.eye(3)).matrix.dtype == torch.float64


def test_representations_hold_the_main_numbers():
    matrix = torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, math.nan]]).double()
    found = Gramian(matrix, {"a": matrix}, engine="vmap", notes=("vmap <could> not",))
    assert repr(found) == "Gramian(k=3, layers=1, engine='vmap', mean cosine distance=0.5000)"
    html = found._repr_html_()
    for part in ("3 (1 not finite)", "0.5000", "vmap", "vmap &lt;could&gt; not", "<table>"):
        assert part in html
    rows = some_rows()
    assert repr(rows) == "GradientRows(k=4, parameters=3, numbers=10, engine='loop')"
    html = rows._repr_html_()
    for part in ("<td>4</td>", "<td>3</td>", "<td>10</td>", "loop", "a &lt;b&gt; note"):
        assert part in html


def test_representation_of_a_single_row():
    assert "mean cosine distance=nan" in repr(Gramian(torch.ones(1, 1).double()))
    assert "none" in Gramian(torch.ones(1, 1).double())._repr_html_()


def test_results_cannot_be_changed_by_assignment():
    with pytest.raises(AttributeError):
        some_rows().named = {}  # type: ignore[misc]
    with pytest.raises(AttributeError):
        some_rows().gramian().matrix = torch.eye(2)  # type: ignore[misc]


@pytest.mark.parametrize("layers", [True, False])
def test_plot_gives_a_figure_of_the_distances(layers):
    found = some_rows().gramian(layers=layers)
    figure = found.plot()
    assert isinstance(figure, Figure)
    heat_map = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(heat_map, found.cosine_distance())


def test_rows_of_a_real_model_show_themselves():
    rows = microbatch_gradients(make("gpt"), loss, batch("gpt", 4), 2)
    assert "k=2" in repr(rows)
    assert isinstance(rows.gramian().plot(), Figure)
