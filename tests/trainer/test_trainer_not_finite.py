"""NaN and infinity: left out, counted, named; and an end when nothing else is left."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from trainer_parts import (
    LOSS,
    MARK,
    flat,
    infinite_gradient,
    macrobatches,
    network,
    same,
    trainer_of,
)

from gafscope.aggregation import GAF, HalvingGAF, Mean
from gafscope.errors import UserError
from gafscope.records import load_run


def nan_loss(model, batch):
    return torch.where(batch[0][:, 0] == MARK, math.nan, LOSS(model, batch))


def infinite_loss(model, batch):
    return torch.where(batch[0][:, 0] == MARK, math.inf, LOSS(model, batch))


WAYS = {
    "nan input": (LOSS, math.nan),
    "infinite input": (LOSS, math.inf),
    "nan loss": (nan_loss, MARK),
    "infinite loss": (infinite_loss, MARK),
    "infinite gradient": (infinite_gradient, MARK),
}
K, U = 4, 8


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "rule", [GAF(2.0), HalvingGAF(2.0), Mean()], ids=lambda r: type(r).__name__
)
@pytest.mark.parametrize("every", [0, 1])
@pytest.mark.parametrize("bad", [0, 2])
def test_a_bad_microbatch_is_left_out_and_named(way, rule, every, bad):
    loss, value = WAYS[way]
    model = network(norm=True)
    trainer = trainer_of(
        model, loss=loss, aggregator=rule, microbatches=K, record_layers_every=every
    )
    batches = macrobatches(6, K, U)
    batches[2][0][bad * U + 3, 0] = value
    history = trainer.fit(batches, steps=6)
    assert history["not_finite"].tolist() == [[], [], [bad], [], [], []]
    assert history["accepted"].tolist() == [K, K, K - 1, K, K, K]
    assert history["stepped"].all()
    # No visit, so no distance; the first good one starts the sum.
    unknown = [i for i, d in enumerate(history["distance_to_sum"][2]) if math.isnan(d)]
    assert unknown == ([0, 1] if bad == 0 else [0, bad])
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_the_rest_of_the_macrobatch_is_averaged_as_if_it_were_alone():
    def run(batches, k):
        model = network(norm=True)
        trainer_of(model, aggregator=Mean(), microbatches=k).fit(batches, steps=1)
        return dict(model.state_dict())

    (inputs, targets) = macrobatches(1, 3)[0]
    good = torch.cat([inputs[:8], inputs[16:]]), torch.cat([targets[:8], targets[16:]])
    spoilt = inputs.clone()
    spoilt[12] = math.nan
    with_bad, alone = run([(spoilt, targets)], 3), run([good], 2)
    for name, value in alone.items():
        torch.testing.assert_close(with_bad[name], value, msg=name)


def test_with_one_of_two_gaf_skips_and_averaging_steps(tmp_path):
    batches = macrobatches(3, 2)
    batches[1][0][0] = math.nan
    for rule, stepped in ((GAF(2.0), [True, False, True]), (Mean(), [True] * 3)):
        folder = tmp_path / type(rule).__name__
        trainer = trainer_of(network(), aggregator=rule, run_dir=folder, record_layers_every=0)
        history = trainer.fit(batches, steps=3)
        assert history["stepped"].tolist() == stepped
        assert history["not_finite"].tolist() == [[], [0], []]
        assert math.isnan(history["distance_mean"][1])
        assert math.isnan(history["loss"][1])
        # The record says which one it was as well.
        matrix = load_run(folder).matrix(1)
        assert math.isnan(matrix[0, 0]) and math.isnan(matrix[0, 1])
        assert math.isfinite(matrix[1, 1])


def test_record_by_layer_with_a_nan_microbatch(tmp_path):
    batches = macrobatches(2, 3)
    batches[0][0][8:16] = math.nan
    trainer = trainer_of(
        network(), aggregator=Mean(), microbatches=3, run_dir=tmp_path / "r", record_layers_every=1
    )
    trainer.fit(batches, steps=2)
    run = load_run(tmp_path / "r")
    for layer in (None, *run.layers):
        diagonal = run.matrix(0, layer).diagonal()
        assert [math.isnan(value) for value in diagonal] == [False, True, False]


def test_nothing_finite_from_the_start_is_an_error_that_says_so():
    batches = macrobatches(30, 2)
    for inputs, _ in batches:
        inputs[:, 0] = math.nan
    model = network(norm=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = trainer_of(model)
    with pytest.raises(UserError, match="since the first step"):
        trainer.fit(batches, steps=30)
    assert trainer.step < 10
    assert same(dict(model.state_dict()), before)


def test_divergence_is_an_error_that_says_since_when(tmp_path):
    batches = macrobatches(40, 2)
    for inputs, _ in batches[17:]:
        inputs[3] = math.nan
        inputs[12] = math.nan
    trainer = trainer_of(network(), aggregator=Mean(), run_dir=tmp_path / "r")
    with pytest.raises(UserError, match=r"diverged: since step 17 "):
        trainer.fit(batches, steps=40)
    # What was measured until then can be looked at.
    scalars = load_run(tmp_path / "r").scalars
    assert len(scalars) >= 17
    assert scalars["not_finite"][17] == [0, 1]


def test_a_few_bad_macrobatches_in_a_row_are_survived():
    batches = macrobatches(30, 2)
    for inputs, _ in (*batches[5:14], *batches[15:24]):
        inputs[3] = math.nan
        inputs[12] = math.nan
    model = network()
    history = trainer_of(model, aggregator=Mean()).fit(batches, steps=30)
    assert history["stepped"].sum() == 12
    assert torch.isfinite(flat(model)).all()


def test_zero_gradients_are_no_agreement():
    """A dead network: every gradient is exactly zero, so nothing agrees with anything."""
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3, bias=False))
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    before = flat(model)
    history = trainer_of(model, aggregator=GAF(0.97)).fit(macrobatches(3, 2), steps=3)
    assert not history["stepped"].any()
    assert history["not_finite"].tolist() == [[]] * 3
    assert history["distance_to_sum"].tolist() == [[1.0, 1.0]] * 3
    assert torch.equal(flat(model), before)


def test_an_all_but_infinite_loss_of_averaging_is_still_the_mean_of_finite_ones():
    """Gradients near the largest float32 neither overflow the squares nor the distances."""
    model = nn.Linear(6, 3, bias=False)

    def loss(net, batch):
        return net(batch[0]).sum(1) * 1e30

    trainer = trainer_of(model, torch.optim.SGD(model.parameters(), 0.0), loss=loss)
    row, _ = trainer.advance((torch.rand(8, 6) + 1, torch.zeros(8)))
    assert row["stepped"]
    assert row["not_finite"] == []
    assert 0 < row["distance_mean"] < 0.2
    assert 1e30 < row["grad_norm"] < 1e32
