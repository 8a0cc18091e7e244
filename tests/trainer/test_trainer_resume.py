"""Whatever interrupts a run, fitting it again ends as if nothing had."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, lr_scheduler
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset
from trainer_parts import (
    LOSS,
    assert_same_scalars,
    flat,
    macrobatches,
    network,
    same,
    sampler,
    samples,
    trainer_of,
)

from gafscope.aggregation import GAF, Decision, Mean
from gafscope.errors import UserError
from gafscope.gradients import Loss, supervised
from gafscope.records import load_run
from gafscope.trainer import Trainer

STEPS, K = 40, 3
VALIDATION, TEST = samples(50, seed=3), samples(50, seed=4)


def trouble(at: int, how: str = "error") -> Loss:
    """Cross-entropy that makes trouble at one of its calls."""
    calls = iter(range(1, 10**6))

    def criterion(outputs, targets, reduction="mean"):
        if next(calls) == at:
            if how == "error":
                raise RuntimeError("trouble")
            os.kill(os.getpid(), signal.SIGINT)
            if how == "twice":
                os.kill(os.getpid(), signal.SIGINT)
        return nn.functional.cross_entropy(outputs, targets, reduction=reduction)

    return supervised(criterion)


SOURCES = {
    "sampler": lambda: sampler(K, seed=1),
    "list": lambda: macrobatches(17, K),
    "shuffling loader": lambda: DataLoader(
        TensorDataset(*samples(240, seed=6)), batch_size=8 * K, shuffle=True
    ),
}


def make(folder: Path | None, loss: Any = LOSS, **settings: Any) -> Trainer:
    model = network(norm=True, dropout=0.3)
    optimizer = Adam(model.parameters(), 0.05)
    options = {
        "loss": loss,
        "aggregator": GAF(0.9),
        "microbatches": K,
        "scheduler": ReduceLROnPlateau(optimizer, mode="max", factor=0.8, patience=0),
        "run_dir": folder,
        "validate_every": 4,
        "checkpoint_every": 7,
        "record_layers_every": 3,
    }
    return trainer_of(model, optimizer, **options | settings)


def fit(trainer: Trainer, source: str, steps: int = STEPS, batches: Any = None):
    batches = SOURCES[source]() if batches is None else batches
    return trainer.fit(batches, steps, validate=VALIDATION, test=TEST)


def assert_same_run(a: Path, b: Path) -> None:
    one, other = load_run(a), load_run(b)
    assert_same_scalars(one.scalars, other.scalars)
    assert one.summary == other.summary
    assert one.recorded_steps == other.recorded_steps
    assert one.layers == other.layers
    for step in one.recorded_steps:
        for layer in (None, *one.layers):
            np.testing.assert_array_equal(one.matrix(step, layer), other.matrix(step, layer))
    ends = [torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (a, b)]
    # The record of an interrupted run may be cut into other parts, at its checkpoints.
    for end in ends:
        end.pop("position")
        end["watchdog"] = repr(end["watchdog"])
    assert ends[0].keys() == ends[1].keys()
    for name in ends[0]:
        assert same(ends[0][name], ends[1][name]), name


@pytest.fixture(scope="module", params=SOURCES)
def whole(request, tmp_path_factory) -> tuple[str, Path]:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    history = fit(make(folder), request.param)
    assert 5 < history["stepped"].sum() < 35
    assert history["lr"].nunique() > 2
    return request.param, folder


@pytest.mark.parametrize("how", ["error", "interrupt", "twice"])
@pytest.mark.parametrize("seed", range(2))
def test_an_interrupted_run_ends_as_a_whole_one(whole, how, seed, tmp_path):
    source, expected = whole
    folder = tmp_path / "run"
    handler = signal.getsignal(signal.SIGINT)
    draws = np.random.default_rng(seed)
    for _ in range(3):
        trainer = make(folder, trouble(int(draws.integers(1, 3 * K * STEPS // 8)), how))
        with pytest.raises(RuntimeError if how == "error" else KeyboardInterrupt):
            fit(trainer, source)
        assert signal.getsignal(signal.SIGINT) is handler
        saved = torch.load(folder / "checkpoint.pt", weights_only=True)
        if how == "interrupt":
            # The step that Ctrl-C came in was completed, and a checkpoint made there.
            assert saved["step"] == trainer.step == len(load_run(folder).scalars)
        else:
            assert saved["step"] % 7 == 0
        assert not load_run(folder).summary
    fit(make(folder), source)
    assert_same_run(expected, folder)


@pytest.mark.parametrize("how", ["error", "interrupt", "twice"])
@pytest.mark.parametrize("at", [2, 2 * K + 1, 50])
def test_the_same_objects_can_be_fitted_again(whole, how, at, tmp_path):
    """Also before the first checkpoint at step 7, where weights and sampler have moved on."""
    source, expected = whole
    folder, batches = tmp_path / "run", SOURCES[source]()
    trainer = make(folder, trouble(at, how))
    with pytest.raises(RuntimeError if how == "error" else KeyboardInterrupt):
        fit(trainer, source, batches=batches)
    fit(trainer, source, batches=batches)
    assert_same_run(expected, folder)


@pytest.mark.parametrize("steps", [(10, 40), (7, 14, 40), (39, 40)])
def test_a_prolonged_run_equals_one_long_run(whole, steps, tmp_path):
    source, expected = whole
    folder = tmp_path / "run"
    for until in steps:
        assert len(fit(make(folder), source, until)) == until
        assert load_run(folder).summary["steps"] == until
        assert load_run(folder).config["steps"] == until
    assert_same_run(expected, folder)


def test_prolonging_with_the_same_objects(whole, tmp_path):
    source, expected = whole
    trainer, batches = make(tmp_path / "run"), SOURCES[source]()
    for until in (10, 25, 40):
        fit(trainer, source, until, batches)
    assert_same_run(expected, tmp_path / "run")


@pytest.mark.parametrize("how", ["", "interrupt"])
def test_without_a_folder_the_same_trainer_goes_on_too(whole, how):
    source, expected = whole
    trainer, batches = make(None, trouble(40 if how else -1, "interrupt")), SOURCES[source]()
    if how:
        with pytest.raises(KeyboardInterrupt):
            fit(trainer, source, 40, batches)
        assert 10 < trainer.step < 14
    else:
        fit(trainer, source, 13, batches)
    history = fit(trainer, source, 40, batches)
    assert_same_scalars(history, load_run(expected).scalars)
    final = torch.load(expected / "checkpoint.pt", weights_only=True)["model"]
    assert same(dict(trainer.model.state_dict()), dict(final))


def untouchable(model, batch):
    raise AssertionError("there is nothing left to train")


def test_a_finished_run_is_returned_without_training(whole, tmp_path):
    source, folder = whole
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    trainer = make(folder, untouchable)
    history = fit(trainer, source)
    assert_same_scalars(history, load_run(folder).scalars)
    final = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
    assert same(dict(trainer.model.state_dict()), dict(final))
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_a_run_killed_before_its_summary_gets_it(whole):
    source, folder = whole
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").unlink()
    trainer = make(folder)
    trainer.advance = untouchable
    fit(trainer, source)
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert {"test_loss", "best_test_loss", "best_step"} <= summary.keys()


def test_ctrl_c_in_the_last_step_leaves_only_the_summary_to_do(tmp_path):
    def run(loss):
        trainer = trainer_of(network(), loss=loss, run_dir=tmp_path / "run", aggregator=Mean())
        return trainer.fit(macrobatches(5, 2), steps=5)

    with pytest.raises(KeyboardInterrupt):
        run(trouble(10, "interrupt"))
    assert len(load_run(tmp_path / "run").scalars) == 5
    assert not load_run(tmp_path / "run").summary
    run(untouchable)
    assert load_run(tmp_path / "run").summary["status"] == "finished"


def test_fitting_works_outside_the_main_thread(tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(fit(make(tmp_path / "run"), "list")))
    thread.start()
    thread.join()
    assert len(results[0]) == STEPS


SCHEDULERS = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "multi-step": lambda o: lr_scheduler.MultiStepLR(o, [3, 8], 0.5),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=50),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=4),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1), lr_scheduler.ExponentialLR(o, 0.9)], [4]
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o, 0.1), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
# A scheduler's own constructor warns about what it does itself.
@pytest.mark.filterwarnings("ignore:.*lr_scheduler:UserWarning", "ignore:.*epoch parameter")
def test_every_scheduler_is_taken_up(name, tmp_path):
    def run(folder, *until):
        for steps in until:
            model = network()
            optimizer = SGD(model.parameters(), np.float64(0.1), momentum=0.9)
            trainer = trainer_of(
                model,
                optimizer,
                aggregator=GAF(1.0),
                scheduler=SCHEDULERS[name](optimizer),
                run_dir=folder,
            )
            history = trainer.fit(macrobatches(20, 2), steps)
        return flat(model), history

    (one, by_one), (two, by_two) = run(tmp_path / "a", 20), run(tmp_path / "b", 6, 13, 20)
    assert torch.equal(one, two)
    assert_same_scalars(by_one, by_two)
    assert by_one["lr"].nunique() > 2


class NoName:
    """A rule without a repr of its own, whose default one holds an address."""

    def __call__(self, gramian) -> Decision:
        return Mean()(gramian)


@pytest.mark.parametrize("rule", [NoName, lambda: lambda gramian: Mean()(gramian)])
def test_a_rule_without_a_name_is_the_same_rule_in_another_process(rule, tmp_path):
    keep = []  # so that no address is used twice
    for steps in (3, 6):
        keep.append(rule())
        trainer = trainer_of(network(), aggregator=keep[-1], run_dir=tmp_path / "run")
        assert len(trainer.fit(macrobatches(6, 2), steps)) == steps


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"aggregator": GAF(0.8)}, "rule"),
        ({"clip_norm": 1.0}, "clip_norm"),
        ({"batch_norm": "all"}, "batch_norm"),
        ({"microbatches": 4}, "microbatches"),
        ({"seed": 1}, "seed"),
    ],
)
def test_other_settings_are_refused(change, word, tmp_path):
    fit(make(tmp_path / "run"), "list", 3)
    before = (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(UserError, match=f"'{word}' is"):
        fit(make(tmp_path / "run", **change), "list", 6)
    assert (tmp_path / "run" / "config.yaml").read_text() == before


def test_another_optimizer_is_refused(tmp_path):
    for decay, problem in ((0.1, None), (0.2, "'optimizer' is")):
        model = network()
        optimizer = SGD(model.parameters(), 0.1, weight_decay=decay)
        trainer = trainer_of(model, optimizer, run_dir=tmp_path / "run")
        if problem is None:
            trainer.fit(macrobatches(3, 2), 3)
        else:
            with pytest.raises(UserError, match=problem):
                trainer.fit(macrobatches(3, 2), 3)


def test_fewer_steps_than_were_made_are_refused(tmp_path):
    fit(make(tmp_path / "run"), "list", 6)
    with pytest.raises(UserError, match="may grow, not shrink"):
        fit(make(tmp_path / "run"), "list", 3)


def test_a_record_that_lost_its_rows_is_refused(tmp_path):
    with pytest.raises(RuntimeError):
        fit(make(tmp_path / "run", trouble(60)), "list")
    (tmp_path / "run" / "scalars.jsonl").write_bytes(b"")
    with pytest.raises(UserError, match="ends before its checkpoint"):
        fit(make(tmp_path / "run"), "list")


def test_macrobatches_of_another_kind_are_refused(tmp_path):
    with pytest.raises(RuntimeError):
        fit(make(tmp_path / "run", trouble(60)), "sampler")
    with pytest.raises(UserError, match="without a state_dict"):
        fit(make(tmp_path / "run"), "list")


def test_a_sampler_of_other_sizes_is_refused(tmp_path):
    with pytest.raises(RuntimeError):
        fit(make(tmp_path / "run", trouble(60)), "sampler")
    with pytest.raises(UserError, match="microbatch_size=8"):
        make(tmp_path / "run").fit(sampler(K, u=4), STEPS, validate=VALIDATION)
