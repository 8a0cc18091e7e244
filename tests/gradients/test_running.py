"""The running vector: s = keep * s + add * g, by parameter, in place."""

from __future__ import annotations

import torch

from gafscope.gradients.running import RunningVector


def test_folds_as_the_formula_says():
    running = RunningVector()
    gradients = [
        [torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])],
        [torch.tensor([4.0, -2.0]), torch.tensor([[1.0]])],
        [torch.tensor([0.0, 8.0]), torch.tensor([[-1.0]])],
    ]
    for gradient, (keep, add) in zip(gradients, [(0.0, 2.0), (0.5, 0.5), (1.0, 3.0)], strict=True):
        running.fold(gradient, keep, add)
    # 2 * g1, then half of it plus half of g2, then plus 3 * g3.
    assert [part.tolist() for part in running.tensors] == [[3.0, 25.0], [[0.5]]]
    running.divide(2)
    assert [part.tolist() for part in running.tensors] == [[1.5, 12.5], [[0.25]]]


def test_takes_the_first_gradient_over_and_leaves_the_others_alone():
    first, second = torch.ones(3), torch.full((3,), 2.0)
    running = RunningVector()
    running.fold([first], 0.0, 1.0)
    running.fold([second], 1.0, 1.0)
    assert running.tensors[0] is first
    assert first.tolist() == [3.0] * 3
    assert second.tolist() == [2.0] * 3


def test_a_parameter_without_a_gradient_counts_as_zero_until_it_has_one():
    running = RunningVector()
    running.fold([torch.ones(2), None, None], 0.0, 1.0)
    running.fold([None, torch.ones(1), None], 0.5, 0.25)
    assert running.tensors[2] is None
    assert running.tensors[0].tolist() == [0.5, 0.5]
    assert running.tensors[1].tolist() == [0.25]
    running.divide(4)
    assert running.tensors[2] is None


def test_a_fold_of_nothing_is_nothing():
    running = RunningVector()
    running.divide(2)
    running.scale(2.0)
    assert running.tensors == []
