"""Observing: the right numbers, and not a bit of difference for the loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from watched_loops import batches, network, same, sgd, state_of, train

from gafscope.aggregation import GAF, KMeansDirections
from gafscope.gradients import gramian, supervised
from gafscope.instruments import AtSteps, Record, watch
from gafscope.models import gpt

LOSS = supervised(nn.functional.cross_entropy)


def assert_same_gramian(found, right):
    right = np.asarray(right)
    np.testing.assert_allclose(found, right, rtol=0, atol=1e-6 * right.max())


@pytest.mark.parametrize("divide", [True, False])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_weights_are_bit_identical_with_and_without(divide, set_to_none):
    states = []
    for watched in (False, True):
        model = network(norm=True)
        optimizer = sgd(model)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
        options = {"divide": divide, "set_to_none": set_to_none, "clip": 0.5}
        options["scheduler"] = scheduler
        if watched:
            with watch(model, optimizer, every=2, scheduler=scheduler) as scope:
                train(model, optimizer, batches(7, 3), **options)
            assert scope.run.recorded_steps == [0, 2, 4, 6]
        else:
            train(model, optimizer, batches(7, 3), **options)
        states.append(state_of(model, optimizer, scheduler))
    assert same(*states)


@pytest.mark.parametrize("divide", [True, False])
def test_gramians_are_those_of_gramian_on_the_loops_own_scale(divide):
    model, data, k = network(), batches(3, 4), 4
    expected = []
    optimizer = sgd(model)
    for parts in data:
        batch = tuple(torch.cat(column) for column in zip(*parts, strict=True))
        expected.append(gramian(model, LOSS, batch, microbatches=k))
        train(model, optimizer, [parts], divide=divide)
    scale = 1 / k**2 if divide else 1.0
    model = network()
    optimizer = sgd(model)
    with watch(model, optimizer, every=1) as scope:
        train(model, optimizer, data, divide=divide, scope=scope)
    run = scope.run
    for step, right in enumerate(expected):
        assert_same_gramian(run.matrix(step), right.matrix * scale)
        for name, layer in right.layers.items():
            assert_same_gramian(run.matrix(step, name), layer * scale)


def test_a_nanogpt_style_loop_with_tied_weights():
    def make():
        torch.manual_seed(1)
        model = gpt(30, context=8, dim=16, depth=2, heads=2, tie_weights=True)
        return model, torch.optim.AdamW(model.parameters(), 1e-2)

    text = torch.randint(30, (200,), generator=torch.Generator().manual_seed(2))

    def get_batch(generator):
        start = torch.randint(len(text) - 9, (4,), generator=generator)
        window = torch.stack([text[i : i + 9] for i in start.tolist()])
        return window[:, :-1], window[:, 1:]

    def loop(model, optimizer, scope=None):
        generator = torch.Generator().manual_seed(3)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        seen = []
        inputs, targets = get_batch(generator)
        for _ in range(4):
            for _ in range(3):
                logits = model(inputs)
                loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
                seen.append((inputs, targets))
                loss = (loss if scope is None else scope.loss(loss)) / 3
                inputs, targets = get_batch(generator)
                scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
        return seen

    bare, bare_optimizer = make()
    seen = loop(bare, bare_optimizer)
    model, optimizer = make()
    first = tuple(torch.cat(column) for column in zip(*seen[:3], strict=True))
    right = gramian(model, LOSS, first, microbatches=3, engine="loop")
    with watch(model, optimizer, every=2) as scope:
        loop(model, optimizer, scope)
    assert same(state_of(bare, bare_optimizer), state_of(model, optimizer))
    assert_same_gramian(scope.run.matrix(0), right.matrix / 9)
    assert scope.run.layers == list(right.layers)
    assert scope.run.scalars.step.tolist() == [0, 2]
    assert scope.run.scalars.loss[0] == pytest.approx(math.log(30), rel=0.1)


def test_the_row_of_a_step_worked_out_by_hand():
    # Gradients (3, 0), (0, 4) and (-6, 0) of a linear loss; the rule's tau accepts orthogonal ones.
    weight = nn.Parameter(torch.zeros(2))
    model = nn.ParameterList([weight])
    optimizer = torch.optim.SGD([weight], lr=0.25)
    with watch(model, optimizer, every=1, rule=GAF(tau=1.0)) as scope:
        for row in ([3.0, 0.0], [0.0, 4.0], [-6.0, 0.0]):
            scope.loss(row[0])
            (weight @ torch.tensor(row)).backward()
        optimizer.step()
    row = scope.run.scalars.iloc[0]
    assert (row.step, row.loss, row.accepted, row.stepped, row.lr) == (0, -1.0, 2, True, 0.25)
    assert row.distance_mean == pytest.approx((1 + 2 + 1) / 3)
    assert row.distance_to_sum[1:] == pytest.approx([1.0, 1 + 18 / (5 * 6)])
    assert row.not_finite == []
    assert row.grad_norm == pytest.approx(5.0)  # (-3, 4)
    assert math.isnan(row.noise_scale)  # mean product -6 is negative
    assert scope.run.matrix(0).tolist() == [[9, 0, -18], [0, 16, 0], [-18, 0, 36]]


def test_noise_scale_by_hand():
    # Gradients (3, 1) and (3, -1): mean product 8, mean square 10.
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with watch(nn.ParameterList([weight]), optimizer) as scope:
        for row in ([3.0, 1.0], [3.0, -1.0]):
            (weight @ torch.tensor(row)).backward()
        optimizer.step()
    assert scope.run.scalars.noise_scale[0] == pytest.approx(10 / 8 - 1)


def test_a_row_that_is_not_finite_is_named():
    model = network()
    optimizer = sgd(model)
    with watch(model, optimizer) as scope:
        for i, (inputs, labels) in enumerate(batches(1, 3)[0]):
            loss = nn.functional.cross_entropy(model(inputs), labels)
            (loss * (math.nan if i == 1 else 1)).backward()
        optimizer.step()
    assert scope.run.scalars.not_finite[0] == [1]
    assert np.isnan(scope.run.matrix(0)[1]).all()


def test_listeners_get_every_record():
    model, records = network(), []
    optimizer = sgd(model)
    with watch(model, optimizer, every=AtSteps([1, 3]), listeners=[records.append]) as scope:
        train(model, optimizer, batches(5, 2))
    assert all(isinstance(record, Record) for record in records)
    assert [record.step for record in records] == [1, 3]
    assert records[0].row["step"] == 1
    assert records[0].gramian.k == 2
    np.testing.assert_array_equal(scope.run.matrix(3), records[1].gramian.matrix)


def test_nothing_is_hooked_at_steps_that_are_not_recorded():
    model, hooked = network(), []
    optimizer = sgd(model)

    def note(place):
        if place == "before the step":
            hooked.append(bool(model[0].weight._backward_hooks))

    with watch(model, optimizer, every=3):
        train(model, optimizer, batches(7, 2), at=note)
    assert hooked == [True, False, False, True, False, False, True]


def test_frozen_parameters_and_parameter_groups():
    model = network()
    model[0].weight.requires_grad_(False)
    groups = [{"params": [model[0].weight, model[0].bias], "lr": 0.1}, {"params": model[2].weight}]
    optimizer = torch.optim.SGD(groups, lr=0.01)
    with watch(model, optimizer) as scope:
        train(model, optimizer, batches(1, 2))
    # model[2].bias is nobody's: it is not trained, so it is not watched.
    assert scope.run.layers == ["0.bias", "2.weight"]


def test_two_optimizers_that_step_together_make_one_step():
    model, data = network(), batches(4, 2)
    both = [torch.optim.SGD(model[0].parameters(), 0.1), torch.optim.Adam(model[2].parameters())]
    with watch(model, both, every=2) as scope:
        for parts in data:
            for inputs, labels in parts:
                nn.functional.cross_entropy(model(inputs), labels).backward()
            for optimizer in both:
                optimizer.step()
            for optimizer in both:
                optimizer.zero_grad()
    assert scope.step == 4
    assert scope.run.recorded_steps == [0, 2]
    assert len(scope.run.layers) == 4


def test_gradients_that_are_emptied_without_a_step_are_forgotten():
    for set_to_none in (True, False):
        model = network()
        optimizer = sgd(model)
        (thrown, kept) = batches(2, 3)
        with watch(model, optimizer) as scope:
            for inputs, labels in thrown:
                nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.zero_grad(set_to_none=set_to_none)
            train(model, optimizer, [kept[:2]])
        assert scope.run.matrix(0).shape == (2, 2)


def test_the_last_macrobatch_of_an_epoch_may_be_shorter():
    model, data = network(), batches(3, 3)
    optimizer = sgd(model)
    with watch(model, optimizer, every=1) as scope:
        train(model, optimizer, [data[0], data[1][:2], data[2][:1], data[0]])
    assert scope.run.recorded_steps == [0, 1, 3]
    assert scope.run.matrix(1).shape == (2, 2)


def test_pause_leaves_steps_out_and_counts_them():
    model = network()
    optimizer = sgd(model)
    data = batches(6, 2)
    with watch(model, optimizer, every=1) as scope:
        train(model, optimizer, data[:2])
        scope.pause()
        train(model, optimizer, data[2:4])
        scope.resume()
        train(model, optimizer, data[4:])
    assert scope.run.recorded_steps == [0, 1, 4, 5]


def test_started_again_the_record_goes_on(tmp_path):
    model = network()
    optimizer = sgd(model)
    scope = watch(model, optimizer, every=1, run_dir=tmp_path / "run")
    for _ in range(2):
        scope.start()
        train(model, optimizer, batches(2, 2))
        scope.stop()
        scope.stop()
    assert scope.run.scalars.step.tolist() == [0, 1, 2, 3]
    assert scope.run.summary == {"steps": 4, "recorded": 4}


def test_the_run_can_be_read_and_drawn_while_it_goes_on(tmp_path):
    model = network()
    optimizer = sgd(model)
    with watch(model, optimizer, every=1, run_dir=tmp_path / "run") as scope:
        train(model, optimizer, batches(2, 2))
        assert scope.run.recorded_steps == [0, 1]
        train(model, optimizer, batches(2, 2))
        assert len(scope.plot().axes) >= 4
    assert scope.run.folder == tmp_path / "run"
    assert scope.run.config["mode"] == "observe"
    assert scope.run.config["tau"] == 0.97


def test_every_further_process_writes_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 2)
    model = network()
    scope = watch(model, sgd(model), run_dir=tmp_path / "run")
    with scope:
        pass
    assert scope.run.folder == tmp_path / "run-rank2"


def test_observers_may_be_nested():
    model = network()
    optimizer = sgd(model)
    with (
        watch(model, optimizer, every=1) as outer,
        watch(model, optimizer, every=2, layers=False) as inner,
    ):
        train(model, optimizer, batches(3, 2))
    np.testing.assert_array_equal(outer.run.matrix(2), inner.run.matrix(2))
    assert inner.run.layers == []


def test_a_rule_that_holds_is_fine_for_observing():
    model = network()
    optimizer = sgd(model)
    with watch(model, optimizer, rule=KMeansDirections()) as scope:
        train(model, optimizer, batches(1, 4))
    assert 0 <= scope.run.scalars.accepted[0] <= 4


def test_a_step_with_a_closure_is_seen_after_the_closure():
    model = network()
    optimizer = sgd(model)
    parts = batches(1, 3)[0]

    def closure():
        optimizer.zero_grad()
        total = 0.0
        for inputs, labels in parts:
            loss = nn.functional.cross_entropy(model(inputs), labels)
            loss.backward()
            total += loss.item()
        return total

    with watch(model, optimizer, every=1) as scope:
        returned = [optimizer.step(closure), optimizer.step(closure=closure)]
    assert scope.run.recorded_steps == [0, 1]
    assert returned[0] != returned[1]


def test_a_compiled_model_has_its_plain_names():
    model = network()
    optimizer = sgd(model)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter)
    with watch(compiled, optimizer, every=2) as scope:
        train(compiled, optimizer, batches(4, 2))
    assert counter.frame_count == 1  # hooks that come and go compile nothing anew
    assert scope.run.layers == [name for name, _ in model.named_parameters()]


def test_autocast():
    model = network()
    optimizer = sgd(model)
    with watch(model, optimizer) as scope, torch.autocast("cpu", torch.bfloat16):
        train(model, optimizer, batches(1, 2))
    assert np.isfinite(scope.run.matrix(0)).all()
