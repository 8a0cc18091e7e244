from __future__ import annotations

import re
import warnings

import pytest
import torch
from gradient_cases import batch, loss, make, plain_rows, relative
from torch import Tensor, nn

from gafscope.errors import UserError
from gafscope.gradients import gramian, microbatch_gradients
from gafscope.gradients.weighted import weighted_gradient

both = pytest.mark.parametrize("measure", [gramian, microbatch_gradients])


@pytest.mark.parametrize(
    ("n", "k", "small"),
    [(6, None, True), (30, 2, True), (32, 2, False), (34, 2, False), (8, 1, False)],
)
def test_auto_takes_the_loop_for_microbatches_of_16_samples_and_more(n, k, small):
    model, data = make("mlp"), batch("mlp", n)
    rows = microbatch_gradients(model, loss, data, k)
    assert (rows.engine, rows.notes) == ("vmap" if small else "loop", ())
    gram = gramian(model, loss, data, k)
    assert (gram.engine, gram.notes) == ("ghost" if small else "loop", ())
    weighted = weighted_gradient(model, loss, data, lambda _: None, k).gramian
    assert (weighted.engine, weighted.notes) == (gram.engine, ())


class Branching(nn.Module):
    """Does one thing or another, depending on a tensor's value."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(192, 5)
        with torch.no_grad():
            # Some microbatches of `batch("mlp", 6)` take one branch, some the other.
            self.linear.weight.copy_(torch.arange(960).cos().view(5, 192) / 10)
            self.linear.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.linear(x.flatten(1))
        return outputs if outputs.sum() > 0 else 2 * outputs


def test_auto_is_right_where_only_a_microbatch_in_the_middle_takes_another_branch():
    model, data = Branching(), batch("mlp", 6)
    with torch.no_grad():
        model.linear.weight.copy_(torch.arange(960).sin().view(5, 192) / 10)
    for _ in range(2):
        found = gramian(model, loss, data, 3)
        assert torch.equal(found.matrix, gramian(model, loss, data, 3, engine="loop").matrix)


@both
def test_auto_turns_to_the_loop_where_vmap_cannot_follow_and_says_so(measure):
    model, data = Branching(), batch("mlp", 6)
    found = measure(model, loss, data, 3)
    assert found.engine == "loop"
    assert len(found.notes) == 1
    assert "vmap cannot take this model (vmap: It looks like" in found.notes[0]
    assert found.notes[0].endswith("loop did.")
    # One branch for all samples: with others beside it, a sample may take another.
    ghost = "ghost cannot take this model (a loss is "
    assert found.notes[0].startswith(ghost) == (measure is gramian)
    rows = microbatch_gradients(model, loss, data, 3)
    assert relative(rows.named, plain_rows(model, loss, data, 3)) < 1e-6
    assert rows.gramian().notes == rows.notes
    expected = gramian(model, loss, data, 3, engine="loop").matrix
    assert torch.equal(gramian(model, loss, data, 3).matrix, expected)


def test_auto_turns_to_vmap_where_ghost_cannot_follow_and_says_so():
    def mean(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return loss(model, batch).mean()

    model, data = make("mlp", torch.float64), batch("mlp", 6, torch.float64)
    found = gramian(model, mean, data, 3)
    assert found.engine == "vmap"
    assert len(found.notes) == 1
    assert re.search(r"ghost cannot take this model \(the loss returns a mean", found.notes[0])
    expected = gramian(model, loss, data, 3, engine="loop").matrix
    torch.testing.assert_close(found.matrix, expected, rtol=1e-10, atol=0)
    with pytest.raises(UserError, match=r"engine='ghost' cannot.*a mean.*Use engine='auto'"):
        gramian(model, mean, data, 3, engine="ghost")


def test_auto_takes_ghost_where_vmap_cannot_follow():
    class Looking(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            if not input.isfinite().all():
                raise FloatingPointError
            return super().forward(input)

    model, data = nn.Sequential(nn.Flatten(), Looking(192, 5)).double(), batch("mlp", 6)
    data = data[0].double(), data[1]
    found = gramian(model, loss, data)
    assert (found.engine, found.notes) == ("ghost", ())
    expected = gramian(model, loss, data, engine="loop").matrix
    torch.testing.assert_close(found.matrix, expected, rtol=1e-10, atol=0)
    assert microbatch_gradients(model, loss, data).engine == "loop"


def test_ghost_gives_no_rows():
    with pytest.raises(UserError, match=r"engine='ghost'.*cannot give the rows; use"):
        microbatch_gradients(make("mlp"), loss, batch("mlp", 6), 3, engine="ghost")


@both
def test_vmap_asked_for_by_name_is_an_error_there(measure):
    with pytest.raises(UserError, match=r"engine='vmap' cannot.*Use engine='loop'") as error:
        measure(Branching(), loss, batch("mlp", 6), 3, engine="vmap")
    assert len(str(error.value)) < 350
    assert isinstance(error.value.__cause__, RuntimeError)


@both
def test_a_mistake_in_the_model_is_shown_as_it_is(measure):
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        measure(nn.Sequential(nn.Flatten(), nn.Linear(3, 5)), loss, batch("mlp", 6), 3)


@both
def test_an_error_without_a_message(measure):
    class Silent(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            raise RuntimeError

    model = nn.Sequential(nn.Flatten(), Silent(192, 5))
    for engine in ("auto", "loop"):
        with pytest.raises(RuntimeError) as error:
            measure(model, loss, batch("mlp", 6), 3, engine=engine)
        assert not isinstance(error.value, UserError)
    with pytest.raises(UserError, match=r"RuntimeError\(\)"):
        measure(model, loss, batch("mlp", 6), 3, engine="vmap")


@both
def test_a_users_own_user_error_passes(measure):

    def picky(model: nn.Module, batch: Tensor) -> Tensor:
        raise UserError("images are too small")

    engines = ["loop", "vmap", "auto", *(["ghost"] if measure is gramian else [])]
    for engine in engines:
        with pytest.raises(UserError, match="images are too small"):
            measure(make("mlp"), picky, batch("mlp", 6), 3, engine=engine)


@both
@pytest.mark.parametrize("engine", ["", "looop", "Vmap", "opacus"])
def test_an_unknown_engine_is_an_error(measure, engine):
    with pytest.raises(UserError, match=rf"Unknown engine '{engine}'.*loop, vmap, ghost.*auto"):
        measure(make("mlp"), loss, batch("mlp", 6), 3, engine=engine)


def test_operations_that_vmap_runs_row_by_row_are_right_and_cause_no_warning():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(64, 4, batch_first=True)
            self.head = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x.flatten(2))[0][:, -1])

    model, data = Recurrent(), batch("cnn", 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = microbatch_gradients(model, loss, data, 3)
    assert relative(rows.named, plain_rows(model, loss, data, 3)) < 1e-5


@pytest.mark.parametrize("name", ["vit", "gpt"])
def test_attention_causes_no_warning(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gramian(make(name), loss, batch(name, 4)).engine == "ghost"
        assert microbatch_gradients(make(name), loss, batch(name, 4)).engine == "vmap"


def test_torchs_own_transformer_layer():
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    data = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(0))

    def squares(model: nn.Module, x: Tensor) -> Tensor:
        return (model(x) - x).square().mean((1, 2))

    for mode in (True, False):
        model.train(mode)
        expected = plain_rows(model, squares, data, 3)
        for engine in ("loop", "vmap"):
            rows = microbatch_gradients(model, squares, data, 3, engine=engine)
            assert relative(rows.named, expected) < 1e-5


def test_a_compiled_model():
    model, data = make("mlp"), batch("mlp", 6)
    expected = microbatch_gradients(model, loss, data, 3).flat()
    compiled = torch.compile(model, backend="eager")
    found = microbatch_gradients(compiled, loss, data, 3)
    torch.testing.assert_close(found.flat(), expected)
    gram = gramian(compiled, loss, data, 3).matrix
    torch.testing.assert_close(gram, (expected @ expected.T).double(), rtol=1e-5, atol=1e-6)
