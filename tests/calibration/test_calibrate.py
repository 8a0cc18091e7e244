from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gafscope.calibration import Calibration, calibrate
from gafscope.calibration.permutation import pair_distances
from gafscope.errors import UserError
from gafscope.geometry import decorrelated, null_interval
from gafscope.gradients import gramian, supervised

LOSS = supervised(cross_entropy)
RATES = (0.01, 0.05, 0.1)


def network(seed: int, *, inputs: int = 20, steps: int = 0) -> nn.Module:
    """A small network, trained for a while on labels that have nothing to do with the inputs."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    x, y = independent(400, seed, inputs)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def independent(n: int, seed: int, inputs: int = 20) -> tuple[Tensor, Tensor]:
    """Inputs, and labels drawn without a look at them, some classes oftener than others."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, inputs, generator=generator)
    frequencies = torch.tensor([0.4, 0.3, 0.1, 0.1, 0.1])
    return x, torch.multinomial(frequencies, n, replacement=True, generator=generator)


def learnable(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    x, _ = independent(n, seed)
    return x, x[:, :5].argmax(1)


def null_distances(model: nn.Module, u: int, seed: int) -> Tensor:
    """Distances of fresh micro-gradients of independent labels, their common mean removed."""
    fresh = independent(200 * u, seed)
    matrix = gramian(model, LOSS, fresh, microbatches=200, layers=False, engine="vmap").matrix
    return pair_distances(decorrelated(matrix))


def relative_rates(steps: int, u: int, networks: int) -> dict[str, np.ndarray]:
    """Give measured over requested acceptance of each way, (networks, rates)."""
    measured: dict[str, list[float]] = {"analytic": [], "permutation": []}
    for seed in range(networks):
        model = network(seed, steps=steps)
        distances = null_distances(model, u, 100 + seed)
        for rate in RATES:
            found = calibrate(
                *(model, LOSS, independent(64 * u, 50 + seed)),
                microbatch_size=u,
                false_accept=rate,
                seed=seed,
                engine="vmap",
            )
            for way, rates in measured.items():
                rates.append(float((distances <= getattr(found, way)).double().mean()) / rate)
    return {way: np.reshape(rates, (networks, -1)) for way, rates in measured.items()}


def test_labels_independent_of_the_inputs_are_accepted_as_often_as_asked():
    for way, rates in relative_rates(100, 20, 3).items():
        assert (rates.mean(0) > 0.5).all(), (way, rates)
        assert (rates.mean(0) < 1.5).all(), (way, rates)


@pytest.mark.slow
@pytest.mark.parametrize("u", [5, 10, 20, 50])
@pytest.mark.parametrize("steps", [0, 100])
def test_acceptance_under_independent_labels_and_its_spread(steps, u):
    for way, rates in relative_rates(steps, u, 16).items():
        print(f"steps={steps} u={u} {way:11} {rates.mean(0).round(2)} sd {rates.std(0).round(2)}")
        # Five samples are no Gaussian: the far tail of the analytic way is too light.
        kept = rates.mean(0)[1:] if (way, u) == ("analytic", 5) else rates.mean(0)
        assert (kept > 0.5).all()
        assert (kept < 1.5).all()


def test_without_centring_shuffled_labels_would_agree():
    # Frequent classes pull every micro-gradient the same way.
    model, data = network(0), independent(64 * 50, 1)
    raw = pair_distances(gramian(model, LOSS, data, 64, layers=False).matrix)
    found = calibrate(model, LOSS, data, microbatch_size=50)
    assert found.permutation is not None
    assert float((raw <= found.permutation).double().mean()) > 0.3


@pytest.fixture(scope="module")
def found() -> Calibration:
    return calibrate(network(3, steps=20), LOSS, learnable(1000), microbatch_size=10)


def test_the_three_ways_and_what_they_say(found):
    assert found.tau == found.analytic
    assert found.low < found.tau < found.high
    assert found.permutation is not None
    assert found.acceptance is not None
    assert abs(found.permutation - found.tau) < 0.15
    assert found.rows == 64
    assert 1 < found.effective_dimension < 436
    assert found.permuted_accept is not None
    assert 0.025 < found.permuted_accept < 0.075
    assert "agree" in found.notes[0]
    assert "5.0% were asked" in found.notes[0]


def test_the_analytic_way_is_that_of_the_gramian_of_random_disjoint_microbatches():
    model, (x, y) = network(3), learnable(100)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(7))
    matrix = gramian(model, LOSS, (x[order], y[order]), 20, engine="loop", seed=7).matrix
    found = calibrate(model, LOSS, (x, y), microbatch_size=5, seed=7, engine="loop")
    assert (found.tau, found.low, found.high) == pytest.approx(null_interval(matrix, 0.05))
    distances = pair_distances(matrix)
    assert found.acceptance == pytest.approx(float(distances.median()), abs=0.01)
    assert found.accepted == pytest.approx(float((distances <= found.tau).double().mean()))


@pytest.mark.parametrize("target", [0.1, 0.25, 0.5])
def test_the_acceptance_way_accepts_its_target_on_fresh_microbatches(target):
    model, shares = network(4, steps=20), []
    for seed in range(4):
        found = calibrate(
            *(model, LOSS, learnable(640, seed)),
            microbatch_size=10,
            target_acceptance=target,
            engine="vmap",
        )
        fresh = gramian(model, LOSS, learnable(2000, 90 + seed), 200, layers=False, engine="vmap")
        assert found.acceptance is not None
        shares.append(float((pair_distances(fresh.matrix) <= found.acceptance).double().mean()))
    assert np.mean(shares) == pytest.approx(target, abs=0.06)


def test_one_seed_gives_one_answer_and_leaves_the_model_alone():
    model = nn.Sequential(nn.Linear(20, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, 5))
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    first, second, other = (
        calibrate(model, LOSS, learnable(320), microbatch_size=10, seed=seed) for seed in (1, 1, 2)
    )
    assert first == second
    assert first.tau != other.tau
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_without_targets_shuffling_is_not_available():
    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return cross_entropy(model(batch["x"]), batch["y"], reduction="none")

    x, y = learnable(320)
    found = calibrate(network(5), loss, {"x": x, "y": y}, microbatch_size=10)
    assert found.permutation is None
    assert found.permuted_accept is None
    assert "not available" in found.notes[0]
    assert "permutation=not available" in repr(found)
    pair = calibrate(network(5), LOSS, (x, y), microbatch_size=10)
    assert pair.tau == found.tau


def test_rows_that_are_not_finite_are_left_out_and_named():
    x, y = learnable(320)
    x[7] = math.nan
    found = calibrate(network(6), LOSS, (x, y), microbatch_size=10)
    assert found.rows == 31
    assert any("1 of 32 micro-gradients are not finite" in note for note in found.notes)
    with pytest.raises(UserError, match="at least 8 finite micro-gradients, but only 0 of 32"):
        calibrate(network(6), LOSS, (x * math.nan, y), microbatch_size=10)


def test_few_microbatches_are_said_to_be_imprecise():
    few = calibrate(network(7), LOSS, learnable(100), microbatch_size=10)
    assert any("Only 10 micro-gradients" in note for note in few.notes)
    many = calibrate(network(7), LOSS, learnable(600), microbatch_size=10)
    assert few.high - few.low > many.high - many.low
    assert not any("Only" in note for note in many.notes)


def test_it_shows_itself(found):
    assert repr(found).startswith(f"Calibration(tau={found.tau:.4f} [")
    text = found._repr_html_()
    assert f"{found.tau:.4f}" in text
    assert "effective dimension" in text
    assert "64 of 10 samples" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"microbatch_size": 0}, "microbatch_size.*at least 1"),
        ({"microbatch_size": 15}, r"at least 8 disjoint microbatches.*100 samples make 6 of"),
        ({"false_accept": 0.0}, "false_accept"),
        ({"target_acceptance": 1.0}, "target_acceptance.*1.0"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        calibrate(network(8), LOSS, learnable(100), **{"microbatch_size": 10, **options})
