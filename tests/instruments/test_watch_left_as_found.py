"""Whatever happens in the loop, nothing of the watch is left afterwards."""

from __future__ import annotations

import atexit
import copy
import pickle

import pytest
import torch
from watched_loops import batches, network, same, sgd, state_of, train

from gafscope.aggregation import GAF
from gafscope.instruments import watch

PLACES = [
    "step begins",
    "before the forward",
    "after the forward",
    "after the backward",
    "before the step",
    "after the step",
    "before zero_grad",
    "step ends",
]


class Stop(Exception):
    pass


def traces(model, optimizer, scheduler, scaler):
    """List everything that a watch touches."""
    return {
        "parameters": [
            (p._backward_hooks, p._post_accumulate_grad_hooks, p.requires_grad)
            for p in model.parameters()
        ],
        "modules": [
            (dict(m._forward_hooks), dict(m._forward_pre_hooks), m.training, sorted(vars(m)))
            for m in model.modules()
        ],
        "optimizer": [
            dict(optimizer._optimizer_step_pre_hooks),
            dict(optimizer._optimizer_step_post_hooks),
            type(optimizer),
            sorted(vars(optimizer)),
        ],
        "scheduler": [type(scheduler), sorted(vars(scheduler))],
        "scaler": [type(scaler), sorted(vars(scaler))],
    }


MODES = [{}, {"filter": GAF(tau=0.6)}, {"memory": "ghost"}]


def setting(mode=None):
    # The ghost engine takes no BatchNorm in training mode.
    model = network(norm="memory" not in (mode or {}))
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    # A first step, since torch itself leaves traces at it.
    train(model, optimizer, batches(1, 2, seed=5), scheduler=scheduler)
    return model, optimizer, scheduler, torch.amp.GradScaler("cpu")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("nth", [0, 3])
@pytest.mark.parametrize("place", PLACES)
def test_an_exception_from_every_point_of_the_loop(place, nth, mode):
    things = setting(mode)
    model, optimizer, scheduler, scaler = things
    before = traces(*things)
    calls = 0

    def fail(now):
        nonlocal calls
        if now == place:
            calls += 1
            if calls > nth:
                raise Stop

    scope = watch(model, optimizer, every=1, scheduler=scheduler, scaler=scaler, **mode)
    with pytest.raises(Stop), scope:
        train(model, optimizer, batches(6, 2), scheduler=scheduler, at=fail)
    assert traces(*things) == before
    assert not scope.watching
    finished = scope.run.summary["recorded"]
    assert len(scope.run.scalars) == finished == scope.step


@pytest.mark.parametrize("mode", MODES)
def test_an_exception_from_within_a_backward_and_from_a_step(mode):
    things = setting(mode)
    model, optimizer, *_ = things
    before = traces(*things)

    def fail(*_):
        raise Stop

    for register in (model[0].weight.register_hook, optimizer.register_step_pre_hook):
        with pytest.raises(Stop), watch(model, optimizer, every=1, **mode):
            handle = register(fail)
            try:
                train(model, optimizer, batches(1, 2))
            finally:
                handle.remove()
        model[0].weight._backward_hooks = None
        assert traces(*things) == before


@pytest.mark.parametrize("mode", MODES)
def test_without_an_exception_the_loop_goes_on_as_if_nothing_had_been(mode):
    things = setting(mode)
    before = traces(*things)
    model, optimizer, scheduler, scaler = things
    with watch(model, optimizer, scheduler=scheduler, scaler=scaler, **mode):
        train(model, optimizer, batches(3, 2), scheduler=scheduler)
    assert traces(*things) == before
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    train(model, optimizer, batches(3, 2, seed=1))
    train(twin, twin_optimizer, batches(3, 2, seed=1))
    assert same(state_of(model, optimizer), state_of(twin, twin_optimizer))


def test_model_optimizer_and_scheduler_can_be_copied_and_saved_meanwhile():
    model, optimizer, scheduler, scaler = setting()

    def copied(place):
        twin = copy.deepcopy(model)
        assert all(p._backward_hooks is None for p in twin.parameters())
        pickle.dumps([thing.state_dict() for thing in (model, optimizer, scheduler, scaler)])
        copy.deepcopy(optimizer)

    with watch(model, optimizer, filter=GAF(), every=1, scheduler=scheduler, scaler=scaler):
        train(model, optimizer, batches(2, 2), at=copied)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_watches_that_overlap_end_in_any_order(order):
    things = setting()
    before = traces(*things)
    model, optimizer, scheduler, scaler = things
    scopes = [
        watch(model, optimizer, filter=GAF(tau=0.0), scheduler=scheduler, scaler=scaler),
        watch(model, optimizer, every=1, scaler=scaler),
    ]
    for scope in scopes:
        scope.start()
    train(model, optimizer, batches(1, 2), scheduler=scheduler)
    epoch = scheduler.last_epoch
    for i in order:
        scopes[i].stop()
        if i == 0:
            scheduler.step()
            assert scheduler.last_epoch == epoch + 1
    assert traces(*things) == before
    assert [len(scope.run.scalars) for scope in scopes] == [1, 1]


def test_a_failing_listener_reaches_the_loop_and_leaves_nothing():
    things = setting()
    before = traces(*things)

    def listener(record):
        raise Stop

    with pytest.raises(Stop), watch(things[0], things[1], listeners=[listener]):
        train(things[0], things[1], batches(2, 2))
    assert traces(*things) == before


def test_a_temporary_folder_outlives_its_scope_and_goes_with_the_program(monkeypatch):
    at_exit = []
    monkeypatch.setattr(atexit, "register", lambda *args, **kw: at_exit.append((args, kw)))
    model = network()
    optimizer = sgd(model)
    with watch(model, optimizer) as scope:
        train(model, optimizer, batches(1, 2))
    run = scope.run
    del scope
    assert run.matrix(0).shape == (2, 2)
    ((function, *args), kwargs), *_ = at_exit
    function(*args, **kwargs)
    assert not run.folder.exists()


def test_a_start_that_fails_leaves_nothing(tmp_path):
    things = setting()
    model, optimizer, *_ = things
    before = traces(*things)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "other.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        watch(model, optimizer, run_dir=tmp_path / "run").start()
    assert traces(*things) == before
