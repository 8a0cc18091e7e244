"""The trainer against direct transcriptions of the rules, written from their descriptions."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from trainer_parts import (
    CLASSES,
    FEATURES,
    assert_same_scalars,
    assign_gradient,
    cosine_distance,
    flat,
    gradients_of,
    macrobatches,
    network,
    same,
    sgd,
    trainer_of,
)

from gafscope.aggregation import GAF, Decision, HalvingGAF, Mean
from gafscope.errors import UserError
from gafscope.gradients import Gramian
from gafscope.records import load_run


def halving(gradients: list[Tensor], tau: float) -> tuple[Tensor | None, int]:
    """The rule of the released code: its update (None skips) and how many agreed with it."""
    running, agreed = gradients[0], 0
    for gradient in gradients[1:]:
        if cosine_distance(running, gradient) <= tau:
            running = (running + gradient) / 2
            agreed += 1
    return (running, agreed) if agreed > 0 else (None, 0)


def algorithm_1(gradients: list[Tensor], tau: float) -> tuple[Tensor | None, int]:
    """Algorithm 1 of the paper on stored gradients, decided and averaged in float64."""
    wide = [gradient.double() for gradient in gradients]
    total, count = wide[0], 1
    for gradient in wide[1:]:
        if cosine_distance(gradient, total) <= tau:
            total, count = total + gradient, count + 1
    return ((total / count).float(), count - 1) if count > 1 else (None, 0)


def train_by_hand(rule, tau: float, batches, k: int, model: nn.Module) -> list[int]:
    optimizer, accepted = sgd(model), []
    for batch in batches:
        update, agreed = rule(gradients_of(model, batch, k), tau)
        accepted.append(agreed + 1 if agreed else 0)
        if update is not None:
            assign_gradient(model, update)
            optimizer.step()
    return accepted


def assert_close(model: nn.Module, reference: nn.Module) -> None:
    difference = (flat(model) - flat(reference)).norm() / flat(reference).norm()
    assert float(difference) < 1e-5
    torch.testing.assert_close(flat(model), flat(reference), rtol=1e-4, atol=1e-6)


def test_halving_gaf_equals_the_released_rule_over_60_steps():
    batches, tau = macrobatches(60, k=4), 0.7
    reference, model = network(), network()
    accepted = train_by_hand(halving, tau, batches, 4, reference)
    trainer = trainer_of(model, aggregator=HalvingGAF(tau), microbatches=4)
    history = trainer.fit(batches, steps=60)
    assert set(accepted) == {0, 2, 3, 4}
    assert history["accepted"].tolist() == accepted
    assert history["stepped"].tolist() == [count > 0 for count in accepted]
    assert_close(model, reference)


@pytest.mark.parametrize(("k", "tau"), [(2, 0.8), (5, 0.6)])
def test_gaf_equals_algorithm_1_over_60_steps(k, tau):
    batches = macrobatches(60, k)
    reference, model = network(), network()
    accepted = train_by_hand(algorithm_1, tau, batches, k, reference)
    history = trainer_of(model, aggregator=GAF(tau), microbatches=k).fit(batches, steps=60)
    assert 10 < sum(count > 0 for count in accepted) < 50
    assert history["accepted"].tolist() == accepted
    assert_close(model, reference)


def test_averaging_equals_plain_training():
    batches = macrobatches(40, k=4)
    reference, model = network(), network()
    optimizer = sgd(reference)
    for inputs, targets in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(reference(inputs), targets).backward()
        optimizer.step()
    trainer_of(model, aggregator=Mean(), microbatches=4).fit(batches, steps=40)
    assert_close(model, reference)


def test_one_microbatch_averaged_is_plain_training():
    batches = macrobatches(20, k=1)
    reference, model = network(), network()
    optimizer = sgd(reference)
    for inputs, targets in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(reference(inputs), targets).backward()
        optimizer.step()
    trainer_of(model, aggregator=Mean(), microbatches=1).fit(batches, steps=20)
    assert torch.equal(flat(model), flat(reference))


class Routed(nn.Module):
    """Each microbatch uses one of two branches; a third parameter is never used."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(FEATURES, 16)
        self.branches = nn.ModuleList(nn.Linear(16, CLASSES) for _ in range(2))
        self.idle = nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        branch = self.branches[int(inputs[0, 0] > 0)]
        return branch(torch.tanh(self.trunk(inputs)))


@pytest.mark.parametrize(
    "rule", [GAF(0.6), HalvingGAF(0.6), Mean()], ids=lambda r: type(r).__name__
)
@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("kind", ["batch norm and dropout", "routed"])
def test_streaming_equals_holding_rows_bit_for_bit(rule, k, kind, tmp_path):
    def run(every: int):
        model = Routed() if kind == "routed" else network(norm=True, dropout=0.3)
        trainer = trainer_of(
            model,
            aggregator=rule,
            microbatches=k,
            record_layers_every=every,
            run_dir=tmp_path / str(every),
        )
        return model, trainer.fit(macrobatches(40, k), steps=40)

    (held, rows), (streamed, plain) = run(1), run(0)
    assert same(dict(held.state_dict()), dict(streamed.state_dict()))
    assert rows["accepted"].tolist() == plain["accepted"].tolist()
    assert not isinstance(rule, GAF) or 0 < plain["stepped"].sum() < 40
    for a, b in zip(rows["distance_to_sum"], plain["distance_to_sum"], strict=True):
        torch.testing.assert_close(torch.tensor(a), torch.tensor(b), equal_nan=True)
    torch.testing.assert_close(
        torch.tensor(rows["grad_norm"]), torch.tensor(plain["grad_norm"]), equal_nan=True
    )
    # Every tenth step held, the others streamed: the schedule of measuring changes nothing.
    mixed, _ = run(10)
    assert same(dict(mixed.state_dict()), dict(held.state_dict()))


def test_a_parameter_that_only_some_microbatches_use_counts_as_zero_in_the_others():
    batches, k, tau = macrobatches(40, k=4), 4, 0.6
    reference, model = Routed(), Routed()
    optimizer, accepted = sgd(reference), []
    used = [p for name, p in reference.named_parameters() if "idle" not in name]
    for inputs, targets in batches:
        rows = []
        for x, y in zip(inputs.chunk(k), targets.chunk(k), strict=True):
            loss = nn.functional.cross_entropy(reference(x), y)
            grads = torch.autograd.grad(loss, used, materialize_grads=True)
            rows.append(torch.cat([grad.flatten() for grad in grads]))
        update, agreed = algorithm_1(rows, tau)
        accepted.append(agreed + 1 if agreed else 0)
        if update is None:
            continue
        sizes = [p.numel() for p in used]
        for parameter, part in zip(used, update.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter).clone()
        # A branch that no accepted microbatch used is left alone, as plain PyTorch leaves it.
        for parameter in used:
            if not parameter.grad.any():
                parameter.grad = None
        optimizer.step()
    history = trainer_of(model, aggregator=GAF(tau), microbatches=k).fit(batches, steps=40)
    assert history["accepted"].tolist() == accepted
    assert_close(model, reference)


def test_unused_and_frozen_parameters_stay_where_they_are():
    model = Routed()
    model.branches[0].bias.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.5)
    trainer_of(model, optimizer, aggregator=GAF(2.0)).fit(macrobatches(10, 2), steps=10)
    after = dict(model.named_parameters())
    for name in ("idle.weight", "idle.bias", "branches.0.bias"):
        assert torch.equal(before[name], after[name]), name
        assert after[name] not in optimizer.state
    assert not torch.equal(before["trunk.weight"], after["trunk.weight"])


class LargestNorms:
    """A rule of the user's own: the k / 2 longest gradients, weighted by their squares."""

    def __call__(self, gramian, /):
        squares = gramian.matrix.diagonal()
        accepted = torch.zeros(gramian.k, dtype=torch.bool)
        accepted[squares.topk(gramian.k // 2).indices] = True
        weights = torch.where(accepted, squares, 0.0)
        return Decision(
            weights=weights / weights.sum(),
            accepted=accepted,
            step=bool(squares[accepted].max() > 0.01),
            distances=torch.full((gramian.k,), math.nan, dtype=torch.float64),
            finite=torch.isfinite(squares),
        )


@pytest.mark.parametrize("k", [2, 4])
def test_a_weighting_of_ones_own(k, tmp_path):
    batches = macrobatches(40, k)
    reference, model = network(), network()
    optimizer = sgd(reference)
    for batch in batches:
        rows = torch.stack(gradients_of(reference, batch, k)).double()
        squares = rows.square().sum(1)
        chosen = squares.topk(k // 2).indices
        weights = squares[chosen] / squares[chosen].sum()
        assign_gradient(reference, (weights @ rows[chosen]).float())
        optimizer.step()
    trainer = trainer_of(model, aggregator=LargestNorms(), microbatches=k, run_dir=tmp_path / "r")
    history = trainer.fit(batches, steps=40)
    assert_close(model, reference)
    assert history["accepted"].tolist() == [k // 2] * 40
    # A rule that needs the whole Gramian computes it at every step, so it is recorded there too.
    assert load_run(tmp_path / "r").recorded_steps == list(range(40))
    assert history["distance_mean"].notna().all()


@pytest.mark.parametrize("k", [2, 4])
def test_tau_2_is_averaging_bit_for_bit(k):
    def run(rule) -> tuple[nn.Module, pd.DataFrame]:
        model = network(norm=True, dropout=0.2)
        trainer = trainer_of(model, aggregator=rule, microbatches=k)
        return model, trainer.fit(macrobatches(50, k), steps=50)

    (gaf, by_gaf), (mean, by_mean) = run(GAF(2.0)), run(Mean())
    assert same(dict(gaf.state_dict()), dict(mean.state_dict()))
    assert_same_scalars(by_gaf, by_mean)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"accepted": torch.zeros(2, dtype=torch.bool)}, "does not accept"),
        (
            {"accepted": torch.zeros(2, dtype=torch.bool), "weights": torch.zeros(2).double()},
            "accepts nothing",
        ),
        ({"weights": torch.tensor([math.nan, 1.0]).double()}, "not finite"),
    ],
)
def test_a_rule_that_contradicts_itself_is_named(change, word):
    def broken(gramian):
        return replace(Mean()(gramian), **change)

    with pytest.raises(UserError, match=word):
        trainer_of(network(), aggregator=broken).fit(macrobatches(1, 2), steps=1)


def test_a_rule_that_decides_on_another_number_of_gradients_is_named():
    def broken(_):
        return Mean()(Gramian(torch.eye(3).double()))

    with pytest.raises(UserError, match=r"function has fields of shape \[\(3,\)\] for k = 2"):
        trainer_of(network(), aggregator=broken).fit(macrobatches(1, 2), steps=1)


def test_a_rule_of_ones_own_cannot_accept_what_is_not_finite():
    def accept_all(gramian):
        k = gramian.k
        return Decision(
            weights=torch.full((k,), 1 / k, dtype=torch.float64),
            accepted=torch.ones(k, dtype=torch.bool),
            step=True,
            distances=torch.full((k,), math.nan, dtype=torch.float64),
            finite=torch.ones(k, dtype=torch.bool),
        )

    inputs, targets = macrobatches(1, 2)[0]
    inputs[3] = math.nan
    model = network()
    before = flat(model)
    with pytest.raises(UserError, match="not finite"):
        trainer_of(model, aggregator=accept_all).fit([(inputs, targets)], steps=1)
    assert torch.equal(flat(model), before)
