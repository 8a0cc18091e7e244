"""The Hugging Face Trainer, written as its documentation writes it, and one more argument."""

from __future__ import annotations

import copy

import pytest
import torch
from adapted_loops import assert_gramians, is_unhooked
from torch import nn
from watched_loops import same, state_of

from gafscope.aggregation import GAF
from gafscope.errors import UserError
from gafscope.gradients import Gramian, gramian
from gafscope.instruments import watch
from gafscope.instruments.huggingface import WatchCallback

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

K, U, LENGTH, STEPS = 4, 2, 10, 3


def language_model():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=20,
        n_positions=LENGTH,
        n_embd=16,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return transformers.GPT2LMHeadModel(config)


def sentences():
    """Give sentences whose last words, of uneven number, are not to be predicted."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for i in range(K * U * STEPS):
        words = torch.randint(20, (LENGTH,), generator=generator)
        labels = words.clone()
        labels[LENGTH - i % 5 :] = -100
        labels[0] = -100  # never predicted; some versions of the Trainer count it
        made.append({"input_ids": words, "labels": labels})
    return made


class Keep(transformers.TrainerCallback):
    """Keeps the model as it is when a step begins."""

    def __init__(self):
        self.models = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.models.append(copy.deepcopy(kwargs["model"]))


def trainer_of(tmp_path, model, callbacks, **options):
    seen = []

    def collate(samples):
        seen.append(transformers.default_data_collator(samples))
        return seen[-1]

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=U,
        gradient_accumulation_steps=K,
        max_steps=STEPS,
        learning_rate=1e-2,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=sentences(),
        data_collator=collate,
        callbacks=callbacks,
        **options,
    )
    return trainer, seen


def summed(model, batch):
    """Give each sentence's loss, summed over the words to predict."""
    logits = model(batch["input_ids"]).logits[:, :-1]
    losses = nn.functional.cross_entropy(
        logits.transpose(1, 2), batch["labels"][:, 1:], reduction="none"
    )
    return losses.sum(1)


def test_the_trainer_is_measured_and_not_changed(tmp_path):
    bare, keep = language_model(), Keep()
    trainer, seen = trainer_of(tmp_path, bare, [keep])
    trainer.train()
    model, callback = language_model(), WatchCallback(every=1)
    watched, _ = trainer_of(tmp_path, model, [callback])
    watched.train()
    assert same(state_of(bare, trainer.optimizer), state_of(model, watched.optimizer))
    assert trainer.lr_scheduler.state_dict() == watched.lr_scheduler.state_dict()
    assert is_unhooked(model, watched.optimizer.optimizer)

    right = []
    for step, before in enumerate(keep.models):
        parts = seen[K * step : K * step + K]
        batch = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        found = gramian(before, summed, batch, microbatches=K, engine="loop")
        # The Trainer divides the sum of all losses of the step by the number of words in it.
        scale = (U / int((batch["labels"] != -100).sum())) ** 2
        layers = {name: layer * scale for name, layer in found.layers.items()}
        right.append(Gramian(found.matrix * scale, layers, found.engine))
    assert_gramians(callback.scope.run, right, scale=1.0)


def test_a_filter_acts_as_in_a_plain_loop(tmp_path):
    tau = 1.0

    def make():
        model = language_model()
        optimizer = torch.optim.SGD(model.parameters(), 0.5, 0.9, weight_decay=1e-2)
        return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

    model, optimizer, scheduler = make()
    callback = WatchCallback(every=1, filter=GAF(tau=tau))
    trainer, seen = trainer_of(tmp_path, model, [callback], optimizers=(optimizer, scheduler))
    trainer.train()

    plain, plain_optimizer, plain_scheduler = make()
    with watch(
        plain, plain_optimizer, every=1, filter=GAF(tau=tau), scheduler=plain_scheduler
    ) as scope:
        for step in range(STEPS):
            parts = seen[K * step : K * step + K]
            words = sum(int((part["labels"][:, 1:] != -100).sum()) for part in parts)
            for part in parts:
                plain(**part, num_items_in_batch=torch.tensor(words)).loss.backward()
            nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
            plain_optimizer.step()
            plain_scheduler.step()
            plain_optimizer.zero_grad()
    assert callback.scope.run.scalars.accepted.tolist() == scope.run.scalars.accepted.tolist()
    assert set(scope.run.scalars.stepped) == {True, False}
    assert same(
        state_of(model, optimizer, scheduler), state_of(plain, plain_optimizer, plain_scheduler)
    )


def test_after_an_exception_stop_and_the_next_training_put_everything_back(tmp_path):
    class Fails(transformers.TrainerCallback):
        def on_substep_end(self, args, state, control, **kwargs):
            raise RuntimeError("stopped")

    model, callback, fails = language_model(), WatchCallback(), Fails()
    trainer, _ = trainer_of(tmp_path, model, [callback, fails])
    for _ in range(2):
        with pytest.raises(RuntimeError, match="stopped"):
            trainer.train()
    optimizer = trainer.optimizer.optimizer
    assert len(optimizer._optimizer_step_pre_hooks) == 1
    callback.stop()
    assert is_unhooked(model, optimizer)


def test_filters_are_refused_where_several_processes_would_diverge(tmp_path, monkeypatch):
    callback = WatchCallback(filter=GAF(tau=0.97))
    trainer, _ = trainer_of(tmp_path, language_model(), [callback])
    monkeypatch.setattr(type(trainer.args), "world_size", property(lambda self: 2))
    with pytest.raises(UserError, match=r"each of the 2 processes alone.*diverge"):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control)


def test_there_is_no_scope_before_training():
    with pytest.raises(UserError, match=r"no scope before training.*trainer\.train\(\)"):
        WatchCallback().scope  # noqa: B018 (the property raises)
