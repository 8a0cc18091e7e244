from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gafscope.errors import UserError
from gafscope.gradients import Loss, Supervised, supervised


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def classes(*shape: int, of: int = 5) -> Tensor:
    return torch.randint(of, shape, generator=torch.Generator().manual_seed(7))


def given(outputs: Tensor) -> nn.Module:
    """A model with these outputs, whatever the inputs."""

    class Constant(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return outputs

    return Constant()


def losses(criterion, outputs: Tensor, targets: Tensor, **options) -> Tensor:
    return supervised(criterion, **options)(given(outputs), (torch.zeros(len(outputs)), targets))


def own_cross_entropy(outputs: Tensor, targets: Tensor, ignore_index: int = 3, reduction="mean"):
    return F.cross_entropy(outputs, targets, ignore_index=ignore_index, reduction=reduction)


@pytest.mark.parametrize(
    "criterion",
    [
        F.cross_entropy,
        partial(F.cross_entropy, reduction="sum"),
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(reduction="sum"),
        lambda o, t: F.cross_entropy(o, t, reduction="none"),
    ],
    ids=["function", "partial", "module", "summing module", "lambda"],
)
def test_one_loss_a_sample(criterion):
    outputs, targets = random(6, 5), classes(6)
    expected = [-float(o.log_softmax(0)[t]) for o, t in zip(outputs, targets, strict=True)]
    torch.testing.assert_close(losses(criterion, outputs, targets), torch.tensor(expected))


def by_hand(outputs: Tensor, targets: Tensor, ignored: int) -> Tensor:
    """Mean of each sample's counted tokens; outputs (B, T, classes)."""
    means = []
    for sample, target in zip(outputs, targets, strict=True):
        counted = [
            -o.log_softmax(0)[t] for o, t in zip(sample, target, strict=True) if t != ignored
        ]
        means.append(sum(counted) / len(counted) if counted else torch.zeros(()))
    return torch.stack(means)


@pytest.mark.parametrize(
    ("criterion", "ignored"),
    [
        (F.cross_entropy, -100),
        (partial(F.cross_entropy, ignore_index=0), 0),
        (partial(partial(F.cross_entropy, label_smoothing=0.0), ignore_index=4), 4),
        (nn.CrossEntropyLoss(), -100),
        (nn.CrossEntropyLoss(ignore_index=2), 2),
        (nn.NLLLoss(ignore_index=1), 1),
        (own_cross_entropy, 3),
        (partial(own_cross_entropy, ignore_index=2), 2),
    ],
    ids=["function", "partial", "nested", "module", "module 2", "nll", "own", "own partial"],
)
def test_tokens_are_averaged_sample_by_sample_over_those_that_count(criterion, ignored):
    outputs, targets = random(4, 7, 5), classes(4, 7)
    if isinstance(criterion, nn.NLLLoss):
        outputs = outputs.log_softmax(-1)
    targets[0, :3] = targets[1, 1:] = targets[2] = ignored
    expected = by_hand(outputs, targets, ignored)
    assert expected[2] == 0
    # Classes last, as language models have them, and in dimension 1, as torch has them.
    torch.testing.assert_close(losses(criterion, outputs, targets), expected)
    torch.testing.assert_close(losses(criterion, outputs.transpose(1, 2), targets), expected)


def test_gradients_of_ignored_tokens_are_zero_even_where_all_are_ignored():
    outputs, targets = random(2, 3, 5).requires_grad_(), classes(2, 3)
    targets[0] = -100
    losses(F.cross_entropy, outputs, targets).sum().backward()
    assert outputs.grad is not None
    assert outputs.grad.isfinite().all()
    assert not outputs.grad[0].any()
    assert outputs.grad[1].any()


def test_pixels():
    outputs, targets = random(3, 5, 4, 6), classes(3, 4, 6)
    expected = F.cross_entropy(outputs, targets, reduction="none").mean((1, 2))
    torch.testing.assert_close(losses(F.cross_entropy, outputs, targets), expected)


def test_as_many_tokens_as_classes_are_ambiguous():
    outputs, targets = random(3, 5, 5), classes(3, 5)
    with pytest.raises(UserError, match=r"\(3, 5, 5\).*class_dim"):
        losses(F.cross_entropy, outputs, targets)
    torch.testing.assert_close(
        losses(F.cross_entropy, outputs, targets, class_dim=-1), by_hand(outputs, targets, -100)
    )
    torch.testing.assert_close(
        losses(F.cross_entropy, outputs, targets, class_dim=1),
        by_hand(outputs.transpose(1, 2), targets, -100),
    )


@pytest.mark.parametrize("class_dim", [None, 1, -1])
def test_soft_targets(class_dim):
    outputs, soft = random(3, 5), random(3, 5).softmax(-1)
    expected = -(outputs.log_softmax(-1) * soft).sum(-1)
    found = losses(F.cross_entropy, outputs, soft, class_dim=class_dim)
    torch.testing.assert_close(found, expected)


def test_soft_targets_of_tokens():
    outputs, soft = random(3, 4, 5), random(3, 4, 5).softmax(-1)
    expected = -(outputs.log_softmax(-1) * soft).sum(-1).mean(1)
    found = losses(F.cross_entropy, outputs, soft, class_dim=-1)
    torch.testing.assert_close(found, expected)
    second = losses(F.cross_entropy, outputs.transpose(1, 2), soft.transpose(1, 2))
    torch.testing.assert_close(second, expected)


@pytest.mark.parametrize(
    "criterion",
    [nn.MSELoss(), nn.MSELoss(reduction="sum"), F.mse_loss, lambda o, t: (o - t).square()],
    ids=["module", "sum", "function", "by hand"],
)
@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 3), (4, 2, 3)])
def test_regression(criterion, shape):
    outputs, targets = random(*shape), random(*shape) + 1
    expected = (outputs - targets).square().reshape(4, -1).mean(1)
    torch.testing.assert_close(losses(criterion, outputs, targets), expected)


def test_whole_number_regression_targets_of_minus_100_are_no_problem_for_one_number_a_sample():
    targets = torch.tensor([-100, 3])
    found = losses(lambda o, t: (o - t).abs(), torch.zeros(2), targets)
    assert found.tolist() == [100, 3]


@pytest.mark.parametrize(("left", "right"), [((4, 1), (4,)), ((4,), (4, 1))])
def test_broadcasting_outputs_against_targets_is_an_error(left, right):
    with pytest.raises(UserError, match=r"\(4, 4\).*squeeze"):
        losses(lambda o, t: (o - t).square(), random(*left), random(*right))
    squeezing = losses(lambda o, t: (o.view(-1) - t.view(-1)).abs(), random(*left), random(*right))
    assert squeezing.shape == (4,)


def test_a_criterion_that_averages_gives_the_mean():
    outputs, targets = random(6, 5), random(6, 5)
    mean = losses(lambda o, t: (o - t).square().mean(), outputs, targets)
    torch.testing.assert_close(mean, (outputs - targets).square().mean())
    assert mean.shape == ()


def test_class_weights_scale_each_samples_loss():
    weight, outputs, targets = torch.arange(1.0, 6.0), random(6, 5), classes(6)
    found = losses(nn.CrossEntropyLoss(weight=weight), outputs, targets)
    torch.testing.assert_close(found, weight[targets] * losses(F.cross_entropy, outputs, targets))


def test_the_users_criterion_keeps_its_reduction():
    criterion = nn.CrossEntropyLoss()
    supervised(criterion)
    assert criterion.reduction == "mean"


def test_binary_targets():
    outputs, targets = random(6), classes(6, of=2).float()
    found = losses(F.binary_cross_entropy_with_logits, outputs, targets)
    expected = F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "batch",
    [torch.zeros(2, 3), (torch.zeros(2),), [torch.zeros(2)] * 3, {"x": 1, "y": 2}, "ab"],
    ids=["tensor", "one", "three", "dict", "string"],
)
def test_a_batch_that_is_no_pair_is_an_error(batch):
    with pytest.raises(UserError, match=r"\(inputs, targets\).*no pair.*your own loss"):
        supervised(F.cross_entropy)(nn.Identity(), batch)


def test_models_and_targets_that_are_no_tensors_are_an_error():
    loss = supervised(F.cross_entropy)
    with pytest.raises(UserError, match="a model that returns one tensor, but this is a dict"):
        loss(lambda x: {"logits": x}, (random(2, 3), classes(2)))
    with pytest.raises(UserError, match="targets that are one tensor, but this is a dict"):
        loss(nn.Identity(), (random(2, 3), {"labels": classes(2)}))


def test_accuracy_of_each_sample():
    loss = supervised(F.cross_entropy)
    outputs = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    accuracy = loss.accuracy(outputs, torch.tensor([1, 1, -100]))
    assert accuracy is not None
    assert accuracy.tolist() == [1, 0, 0]
    tokens, targets = random(3, 4, 5), classes(3, 4)
    targets[0, 1:] = -100
    targets[1] = -100
    _, second = loss.with_outputs(given(tokens), (torch.zeros(3), targets))
    accuracy = loss.accuracy(second, targets)
    right = (tokens.argmax(-1) == targets).float()
    assert accuracy is not None
    torch.testing.assert_close(
        accuracy, torch.stack([right[0, 0], right[1, 0] * 0, right[2].mean()])
    )
    assert loss.accuracy(random(3, 5), random(3, 5)) is None
    assert loss.accuracy(random(3), classes(3)) is None


def test_what_supervised_makes_is_a_loss():
    loss = supervised(F.cross_entropy)
    assert isinstance(loss, Supervised)
    assert isinstance(loss, Loss)
