from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gafscope.errors import UserError
from gafscope.models import gpt


def tokens(n: int, t: int, vocab: int) -> torch.Tensor:
    return torch.randint(vocab, (n, t), generator=torch.Generator().manual_seed(0))


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_parameter_count():
    block = 12 * 128**2 + 13 * 128
    assert parameters(gpt()) == 256 * 128 + 64 * 128 + 4 * block + 2 * 128


def test_sequences_up_to_the_context_give_logits_for_every_token():
    model = gpt(11, context=6, dim=8, depth=1, heads=2)
    for length in (1, 6):
        assert model(tokens(3, length, 11)).shape == (3, length, 11)
    with pytest.raises(UserError, match="at most context=6 tokens, but this one has 7"):
        model(tokens(3, 7, 11))


def test_a_later_token_changes_no_earlier_logits_but_all_later_ones():
    model = gpt(11, context=8, dim=8, depth=2, heads=2)
    before = tokens(2, 8, 11)
    after = before.clone()
    after[:, 5] = (after[:, 5] + 1) % 11
    changed = (model(before) != model(after)).any(dim=2)
    assert not changed[:, :5].any()
    assert changed[:, 5:].all()


def test_positions_tell_equal_tokens_apart():
    model = gpt(11, context=8, dim=8, depth=1, heads=2)
    same = torch.full((1, 8), 3)
    assert not torch.allclose(model(same)[0, 0], model(same)[0, 1])
    nn.init.zeros_(model.positions.weight)
    torch.testing.assert_close(model(same)[0, 0], model(same)[0, 7])


def test_the_tied_head_is_one_parameter_with_the_gradients_of_both_uses():
    tied = gpt(11, context=4, dim=8, depth=1, heads=2).double()
    untied = gpt(11, context=4, dim=8, depth=1, heads=2, tie_weights=False).double()
    untied.load_state_dict(tied.state_dict())
    assert tied.head.weight is tied.tokens.weight
    assert "head.weight" not in dict(tied.named_parameters())
    assert parameters(untied) - parameters(tied) == 11 * 8
    batch = tokens(3, 5, 11)
    for model in (tied, untied):
        logits = model(batch[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
    assert untied.tokens.weight.grad is not None
    assert untied.head.weight.grad is not None
    torch.testing.assert_close(
        tied.tokens.weight.grad, untied.tokens.weight.grad + untied.head.weight.grad
    )


def test_weights_are_normal_and_residual_projections_smaller():
    model = gpt(dim=96, depth=3, heads=2, tie_weights=False)
    projections = [p for block in model.blocks for p in block.residual_projections]
    assert len(projections) == 6
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            residual = any(module is projection for projection in projections)
            expected = 0.02 / math.sqrt(6) if residual else 0.02
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05)
        if isinstance(module, nn.Linear) and module.bias is not None:
            assert not module.bias.any()


def test_the_first_loss_is_that_of_guessing():
    batch = tokens(8, 33, 256)
    logits = gpt(dim=32, depth=2)(batch[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(256), rel=0.02)


def test_dropout_acts_in_training_mode_only():
    model = gpt(11, context=4, dim=8, depth=1, heads=2, dropout=0.5)
    batch = tokens(2, 4, 11)
    assert not torch.equal(model(batch), model(batch))
    model.eval()
    assert torch.equal(model(batch), model(batch))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 10, "heads": 4}, "dim must be divisible by heads"),
        ({"vocab_size": 0}, "vocab_size must be"),
        ({"context": 0}, "context must be"),
        ({"dropout": 2.0}, "dropout must lie"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        gpt(**arguments)
