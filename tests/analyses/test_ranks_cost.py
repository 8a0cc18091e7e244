"""What the comparison of ranks with plain DDP measures."""

from __future__ import annotations

import pytest

from gafscope.analyses.ranks_cost import measure_ranks
from gafscope.errors import UserError


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(UserError, match="2 ranks and 1 step at least"):
        measure_ranks(1)
    with pytest.raises(UserError, match="must be 'resnet18' or 'mlp'"):
        measure_ranks(2, model="vgg")


@pytest.mark.slow
def test_agreement_sends_the_bytes_of_a_plain_all_reduce():
    cost = measure_ranks(2, model="mlp", steps=3)
    plain = 2 * 4 * cost.numbers * (cost.ranks - 1) / cost.ranks
    assert cost.numbers > 10_000_000
    assert plain < cost.plain_bytes < 1.1 * plain
    assert cost.agreed_bytes <= 1.02 * cost.plain_bytes
    assert cost.agreed_memory - cost.plain_memory <= 1.2 * 4 * (1 + 2 / cost.ranks) * cost.numbers
    assert 0 < cost.plain_processor < cost.agreed_processor < 3 * cost.plain_processor
