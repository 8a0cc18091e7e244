"""Loops and settings that cannot be watched: one clear sentence each."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import distributed, nn
from watched_loops import batches, network, sgd, train

from gafscope.aggregation import GAF, CalibratedGAF, KMeansDirections, Mean, SignAgreement
from gafscope.errors import UserError
from gafscope.instruments import watch


@pytest.fixture
def group(tmp_path):
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


def test_one_microbatch_only():
    model = network()
    optimizer = sgd(model)
    with pytest.raises(UserError, match=r"one backward a step.*split"), watch(model, optimizer):
        train(model, optimizer, batches(2, 1))


def test_no_backward_since_the_last_step(caplog):
    model = network()
    optimizer = sgd(model)
    with caplog.at_level(logging.WARNING, "gafscope"), watch(model, optimizer, every=1) as scope:
        optimizer.step()
        optimizer.step()
        train(model, optimizer, batches(1, 2))
    assert scope.run.recorded_steps == [2]
    assert caplog.text.count("without a backward") == 1


def test_parameters_that_change_between_steps_are_taken_up():
    model = network()
    model[0].requires_grad_(False)
    optimizer = sgd(model)
    with watch(model, optimizer, every=1) as scope:
        train(model, optimizer, batches(2, 2))
        model[0].requires_grad_(True)
        train(model, optimizer, batches(2, 2))
    run = scope.run
    assert run.recorded_steps == [0, 1, 3]
    assert [len(run.layer_matrices(step)) for step in (1, 3)] == [2, 4]


def test_parameters_that_change_under_a_filter_are_refused():
    model = network()
    model[0].requires_grad_(False)
    optimizer = sgd(model)
    with (
        pytest.raises(UserError, match=r"'0\.weight' and 1 others.*stop\(\) the watch"),
        watch(model, optimizer, filter=GAF(), every=1),
    ):
        train(model, optimizer, batches(1, 2))
        model[0].requires_grad_(True)
        train(model, optimizer, batches(1, 2))


def test_an_optimizer_of_another_model():
    with pytest.raises(UserError, match="4 parameters that are not the model's"):
        watch(network(), sgd(network()))


def test_an_optimizer_of_frozen_parameters():
    model = network()
    model.requires_grad_(False)
    with pytest.raises(UserError, match="owns no trainable parameter"):
        watch(model, sgd(model))


@pytest.mark.parametrize("optimizer", [[], "adam", [None]])
def test_something_else_than_an_optimizer(optimizer):
    with pytest.raises(UserError, match="needs the loop's torch optimizer"):
        watch(network(), optimizer)


def test_sharded_parameters(group):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = network()
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(UserError, match=r"sharded over several processes.*distribute"):
        watch(model, sgd(model))


def test_data_parallel_processes_are_observed_and_not_filtered(group):
    model = network()
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = sgd(model)
    with pytest.raises(UserError, match=r"processes .* would diverge.*distribute"):
        watch(parallel, optimizer, filter=GAF())
    parts = batches(1, 2)[0]
    right = [
        torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters()))
        for x, y in parts
    ]
    with watch(parallel, optimizer) as scope:
        with parallel.no_sync():
            nn.functional.cross_entropy(parallel(parts[0][0]), parts[0][1]).backward()
        nn.functional.cross_entropy(parallel(parts[1][0]), parts[1][1]).backward()
        optimizer.step()
    product = sum(float((a.double() * b.double()).sum()) for a, b in zip(*right, strict=True))
    assert scope.run.matrix(0)[0, 1] == pytest.approx(product, rel=1e-6)
    assert scope.run.layers == [name for name, _ in model.named_parameters()]


def test_sparse_gradients():
    model = nn.Embedding(5, 2, sparse=True)
    with pytest.raises(UserError, match="sparse=False"):
        watch(model, torch.optim.SGD(model.parameters(), 0.1))


def test_complex_parameters():
    model = nn.ParameterList([nn.Parameter(torch.zeros(2, dtype=torch.complex64))])
    with pytest.raises(UserError, match="'0' is complex"):
        watch(model, torch.optim.SGD(model.parameters(), 0.1))


def test_lbfgs():
    model = network()
    with pytest.raises(UserError, match="LBFGS runs its closure"):
        watch(model, torch.optim.LBFGS(model.parameters()))


def test_a_closure_that_is_run_twice():
    class Twice(torch.optim.SGD):
        def step(self, closure):
            closure()
            return closure()

    model = network()
    optimizer = Twice(model.parameters(), 0.1)
    parts = batches(1, 2)[0]

    def closure():
        for inputs, labels in parts:
            nn.functional.cross_entropy(model(inputs), labels).backward()

    with pytest.raises(UserError, match="several times a step"), watch(model, optimizer):
        optimizer.step(closure)


def test_another_number_of_backwards_than_promised():
    model = network()
    optimizer = sgd(model)
    with (
        pytest.raises(UserError, match=r"microbatches=3.*after 2 backwards"),
        watch(model, optimizer, microbatches=3),
    ):
        train(model, optimizer, batches(1, 2))


@pytest.mark.parametrize("k", [2, 4])
def test_another_number_of_backwards_than_a_rule_needs(k):
    model = network()
    optimizer = sgd(model)
    with (
        pytest.raises(UserError, match="GAF decides on all microbatches at once"),
        watch(model, optimizer, filter=GAF(anchor="best"), microbatches=3),
    ):
        train(model, optimizer, batches(1, k))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every must be"),
        ({"every": "often"}, "every must be"),
        ({"microbatches": 1}, "at least 2"),
        ({"microbatches": 2.5}, "at least 2"),
        ({"memory": "moon"}, "Unknown memory 'moon'"),
        ({"filter": GAF(), "rule": Mean()}, "give one of them"),
        ({"filter": 3}, "take a rule"),
        ({"filter": GAF}, "take a rule"),
        ({"filter": KMeansDirections()}, "give microbatches=k"),
        ({"filter": CalibratedGAF()}, "calibrate"),
        ({"rule": SignAgreement()}, "needs the gradients themselves"),
    ],
)
def test_settings_that_cannot_be(options, message):
    model = network()
    with pytest.raises(UserError, match=message):
        watch(model, sgd(model), **options)


def test_started_twice_filtered_twice_and_a_folder_in_use(tmp_path):
    model = network()
    optimizer = sgd(model)
    with watch(model, optimizer, filter=GAF(), run_dir=tmp_path / "run") as scope:
        with pytest.raises(UserError, match="started already"):
            scope.start()
        with pytest.raises(UserError, match="filtered by another"):
            watch(model, optimizer, filter=GAF()).start()
    with pytest.raises(UserError, match="holds a run already"):
        watch(model, optimizer, run_dir=tmp_path / "run")


def test_a_wrapped_optimizer_is_unwrapped():
    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer = optimizer

        def step(self):
            self.optimizer.step()

        def zero_grad(self, set_to_none=True):
            self.optimizer.zero_grad(set_to_none)

        @property
        def param_groups(self):
            return self.optimizer.param_groups

    model = network()
    wrapped = Wrapper(sgd(model))
    with watch(model, wrapped) as scope:
        train(model, wrapped, batches(1, 2))
    assert scope.run.recorded_steps == [0]
