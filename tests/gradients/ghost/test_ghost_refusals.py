"""What the ghost engine cannot take is an error by name, and "auto" is right or says why not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ghost_cases
import pytest
import torch
import torch.nn.functional as F
from ghost_cases import (
    assert_same,
    check_refused,
    check_right_or_refused,
    make,
    normal,
    tokens,
    waves,
)
from torch import Tensor, nn

from gafscope.errors import UserError
from gafscope.gradients import gramian, supervised

T, D = 5, 4
Loss = Callable[[Any, Any], Tensor]


def layers() -> nn.Module:
    return make(lambda: nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, 3)))


def contrastive(model: Any, x: Tensor) -> Tensor:
    z = F.normalize(model(x), dim=1)
    return F.cross_entropy(z @ z.T / 0.5, torch.arange(len(x)), reduction="none")


def clip(model: Any, x: Tensor) -> Tensor:
    a, b = F.normalize(model(x), dim=1), F.normalize(model(x.flip(1)), dim=1)
    return F.cross_entropy(a @ b.mT, torch.arange(len(x)), reduction="none")


def minus_mean(model: Any, x: Tensor) -> Tensor:
    losses = waves(model, x)
    return losses - 0.5 * losses.mean()


def outputs_minus_mean(model: Any, x: Tensor) -> Tensor:
    outputs = model(x)
    return (outputs - outputs.mean(0)).square().sum(1) + outputs.square().sum(1)


def times_detached_mean(model: Any, x: Tensor) -> Tensor:
    losses = waves(model, x)
    return losses * losses.detach().mean()


def standardised_advantages(model: Any, x: Tensor) -> Tensor:
    # Policy gradients: rewards are standardised over the batch without a gradient.
    outputs = model(x)
    rewards = outputs.detach().sum(1)
    return (rewards - rewards.mean()) * outputs.square().sum(1)


def ranked(model: Any, x: Tensor) -> Tensor:
    losses = waves(model, x)
    return losses * (losses.detach() >= losses.detach().mean())


def hardest(model: Any, x: Tensor) -> Tensor:
    losses = waves(model, x)
    return torch.where(losses == losses.max(), 2 * losses, losses)


def softmax_over_samples(model: Any, x: Tensor) -> Tensor:
    losses = waves(model, x)
    return losses * losses.detach().softmax(0)


def neighbour(model: Any, x: Tensor) -> Tensor:
    outputs = model(x)
    return (outputs - outputs.roll(1, 0).detach()).square().sum(1)


def by_batch_size(model: Any, x: Tensor) -> Tensor:
    return waves(model, x) / len(x)


def first_sample(model: Any, x: Tensor) -> Tensor:
    outputs = model(x)
    return (outputs - outputs[:1].detach() * 0.5).square().sum(1)


def another_program(model: Any, x: Tensor) -> Tensor:
    return waves(model, x) if len(x) > 1 else waves(model, 2 * x)


COUPLED_LOSSES: dict[str, Loss] = {
    "contrastive": contrastive,
    "clip": clip,
    "minus the batch mean": minus_mean,
    "outputs minus their mean": outputs_minus_mean,
    "times the detached mean": times_detached_mean,
    "standardised advantages": standardised_advantages,
    "only the harder half": ranked,
    "the hardest twice": hardest,
    "softmax over samples": softmax_over_samples,
    "detached neighbour": neighbour,
    "divided by the batch size": by_batch_size,
    "against the first sample": first_sample,
    "another program for one sample": another_program,
}


class Mixing(nn.Module):
    """Layers with something between them that joins the samples."""

    def __init__(self, mix: Callable[[Tensor], Tensor]):
        super().__init__()
        self.a, self.b = nn.Linear(D, D), nn.Linear(D, 3)
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.mix(self.a(x)).tanh())


def standardise(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / (x.std(0, correction=0) + 0.1)


COUPLED_MODELS: dict[str, Callable[[Tensor], Tensor]] = {
    "flip": lambda x: x + x.flip(0),
    "detached flip": lambda x: x * x.flip(0).detach(),
    "roll": lambda x: x + x.roll(1, 0),
    "batch normalisation by hand": standardise,
    "detached statistics": lambda x: (
        (x - x.mean(0).detach()) / (x.std(0, correction=0).detach() + 0.1)
    ),
    "batch norm by function": lambda x: F.batch_norm(x, None, None, training=True),
    "attention over samples": lambda x: (x @ x.T).softmax(-1) @ x,
    "sum over samples": lambda x: x + x.sum(0),
    "maximum over samples": lambda x: x - x.max(0).values,
    "global scale": lambda x: x / x.detach().abs().max(),
    "cumulative": lambda x: x.cumsum(0),
    "sorted features": lambda x: x.sort(0).values,
    "mixed up halves": lambda x: (
        x.reshape(2, -1).T.reshape(x.shape) if len(x) % 2 == 0 else x.roll(1, 0)
    ),
}


@pytest.mark.parametrize("n", [2, 3, 6])
@pytest.mark.parametrize("name", COUPLED_LOSSES)
def test_losses_that_couple_samples(name, n):
    check_refused(layers(), normal(D)(n), COUPLED_LOSSES[name])


@pytest.mark.parametrize("n", [2, 3, 6])
@pytest.mark.parametrize("name", COUPLED_MODELS)
def test_models_that_couple_samples(name, n):
    if name == "batch norm by function":
        # One sample alone has no statistics, so the loop cannot be asked.
        with pytest.raises((UserError, ValueError)):
            gramian(make(lambda: Mixing(COUPLED_MODELS[name])), waves, normal(D)(n), engine="ghost")
        return
    check_refused(make(lambda: Mixing(COUPLED_MODELS[name])), normal(D)(n), waves)


@pytest.mark.parametrize("name", ["contrastive", "times the detached mean", "minus the batch mean"])
@pytest.mark.parametrize("k", [3, 2, 1])
def test_coupling_inside_a_microbatch_is_right_or_refused(name, k):
    # A microbatch of several samples may couple them: that is what the loop differentiates.
    check_right_or_refused(layers(), normal(D)(6), COUPLED_LOSSES[name], k)


@pytest.mark.parametrize("k", [3, 2, 1])
def test_batch_norm_in_training_mode_with_microbatches_is_right_or_refused(k):
    model = make(lambda: nn.Sequential(nn.Linear(D, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)))
    check_right_or_refused(model, normal(D)(6), k=k)
    model = make(lambda: Mixing(standardise))
    check_right_or_refused(model, normal(D)(6), k=k)


@pytest.mark.parametrize("engine", ["ghost", "auto"])
def test_batch_norm_in_training_mode_has_no_gradients_of_samples(engine):
    model = make(lambda: nn.Sequential(nn.Linear(D, 6), nn.BatchNorm1d(6)))
    engine = ghost_cases.ENGINE if engine == "ghost" else engine
    with pytest.raises(UserError, match=r"'1' is a BatchNorm1d.*eval\(\).*GroupNorm"):
        gramian(model, waves, normal(D)(6), engine=engine)
    untracked = make(lambda: nn.Sequential(nn.BatchNorm1d(D, track_running_stats=False)).eval())
    with pytest.raises(UserError, match=r"'0' is a BatchNorm1d"):
        gramian(untracked, waves, normal(D)(6), engine=engine)


@pytest.mark.parametrize("k", [None, 2])
def test_a_loss_that_averages_itself(k):
    model, batch = layers(), normal(D)(6)

    def scalar(model: Any, x: Tensor) -> Tensor:
        return waves(model, x).mean()

    with pytest.raises(UserError, match=r"(?i)loss"):
        gramian(model, scalar, batch, k, engine=ghost_cases.ENGINE)
    found = gramian(model, scalar, batch, k, engine="auto")
    assert_same(found, gramian(model, scalar, batch, k, engine="loop"))
    assert found.engine != ghost_cases.ENGINE


def test_wrong_losses_are_errors_as_with_every_engine():
    model, batch = layers(), normal(D)(6)
    wrong: dict[str, Loss] = {
        "shape": lambda m, x: m(x),
        "one more": lambda m, x: torch.cat([waves(m, x), waves(m, x)[:1]]),
        "integers": lambda m, x: waves(m, x).long(),
        "no tensor": lambda m, x: 3,
        "no graph": lambda m, x: waves(m, x).detach(),
    }
    for loss in wrong.values():
        for engine in ("loop", ghost_cases.ENGINE, "auto"):
            with pytest.raises(UserError, match=r"[Ll]oss"):
                gramian(model, loss, batch, engine=engine)


def test_a_mistake_in_the_model_is_shown_as_it_is():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        gramian(layers(), waves, normal(D + 1)(6), engine="auto")
    with pytest.raises((RuntimeError, UserError), match="shapes cannot be multiplied"):
        gramian(layers(), waves, normal(D + 1)(6), engine=ghost_cases.ENGINE)


def test_supervised_losses_of_pairs_of_tensors_only():
    loss = supervised(F.cross_entropy)
    with pytest.raises(UserError, match="pair"):
        gramian(layers(), loss, {"x": normal(D)(6), "y": tokens(3)(6)}, engine=ghost_cases.ENGINE)


@pytest.mark.parametrize("name", ["times the detached mean", "standardised advantages"])
def test_dropout_does_not_hide_what_couples_samples(name):
    # Masks differ between two passes, so losses cannot be compared; here they hardly ever do.
    model = make(
        lambda: nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Dropout(1e-9), nn.Linear(6, 3))
    )
    check_refused(model, normal(D)(6), COUPLED_LOSSES[name])
    model = make(
        lambda: nn.Sequential(Mixing(COUPLED_MODELS["detached statistics"]), nn.Dropout(1e-9))
    )
    check_refused(model, normal(D)(6))
