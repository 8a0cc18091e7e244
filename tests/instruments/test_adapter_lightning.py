"""A Lightning module, written as its documentation writes it, and one more argument."""

from __future__ import annotations

import pytest
from adapted_loops import (
    CLIP,
    MICROBATCH,
    SAMPLES,
    K,
    assert_gramians,
    filtered,
    is_unhooked,
    make,
    trained,
)
from torch import nn
from torch.utils.data import DataLoader
from watched_loops import same, state_of

from gafscope.aggregation import GAF
from gafscope.errors import UserError
from gafscope.instruments.lightning import WatchCallback

lightning = pytest.importorskip("lightning.pytorch")
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")


class Classifier(lightning.LightningModule):
    """Takes its parts from `make`; one may be told to fail."""

    def __init__(self, interval="step", fails=False):
        super().__init__()
        self.model, self.optimizer, self.scheduler = make()
        self.interval, self.fails = interval, fails

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        if self.fails and batch_idx == 2:
            raise RuntimeError("stopped")
        return nn.functional.cross_entropy(self.model(inputs), targets)

    def configure_optimizers(self):
        scheduler = {"scheduler": self.scheduler, "interval": self.interval}
        return {"optimizer": self.optimizer, "lr_scheduler": scheduler}

    def state(self):
        return state_of(self.model, self.optimizer, self.scheduler)


def fit(tmp_path, module, *callbacks, epochs=1):
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        accumulate_grad_batches=K,
        gradient_clip_val=CLIP,
        callbacks=list(callbacks),
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(SAMPLES, batch_size=MICROBATCH))
    assert is_unhooked(module, module.optimizer)
    return module.state()


def test_the_module_is_measured_and_not_changed(tmp_path):
    right, gramians = trained()
    callback = WatchCallback(every=1)
    without = fit(tmp_path, Classifier())
    state = fit(tmp_path, Classifier(), callback)
    assert same(without, state)
    assert same(right["0"], state["0"])
    run = callback.scope.run
    assert_gramians(run, gramians, scale=1 / K, prefix="model.")
    # Before Lightning's division by k; the first is that of an untrained network of 3 classes.
    assert 0.8 < run.scalars.loss[0] < 1.6


def test_a_filter_acts_as_in_a_plain_loop(tmp_path):
    class Sees(lightning.Callback):
        """Notes whether there is a gradient left before Lightning clips it."""

        def __init__(self):
            self.kept = []

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            self.kept.append(any(p.grad is not None for p in pl_module.parameters()))

    rule = GAF(tau=0.6)
    right, run = filtered(rule)
    callback, sees = WatchCallback(every=1, filter=rule), Sees()
    assert same(right, fit(tmp_path, Classifier(), callback, sees))
    stepped = run.scalars.stepped.tolist()
    assert callback.scope.run.scalars.stepped.tolist() == stepped
    assert sees.kept == stepped


def test_a_scheduler_of_epochs_is_not_held_back(tmp_path):
    module, callback = Classifier(interval="epoch"), WatchCallback(filter=GAF(tau=0.0))
    fit(tmp_path, module, callback, epochs=2)
    assert not callback.scope.run.scalars.stepped.any()
    assert module.scheduler.last_epoch == 2


def test_after_an_exception_everything_is_put_back(tmp_path):
    module, callback = Classifier(fails=True), WatchCallback()
    with pytest.raises(RuntimeError, match="stopped"):
        fit(tmp_path, module, callback)
    assert not callback.scope.watching
    assert is_unhooked(module, module.optimizer)


def test_several_optimizers_are_refused(tmp_path):
    class Several(Classifier):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self):
            return [self.optimizer, make()[1]]

    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, callbacks=[WatchCallback()], logger=False
    )
    with pytest.raises(UserError, match=r"one optimizer.*the module has 2"):
        trainer.fit(Several(), DataLoader(SAMPLES, batch_size=MICROBATCH))


def test_there_is_no_scope_before_training():
    with pytest.raises(UserError, match=r"no scope before training.*trainer\.fit\(\)"):
        WatchCallback().scope  # noqa: B018 (the property raises)
