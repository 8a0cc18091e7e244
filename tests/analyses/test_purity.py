import math

import pytest
import torch

from gafscope.aggregation import GAF, Mean, SignAgreement
from gafscope.analyses.purity import purity
from gafscope.errors import UserError
from gafscope.gradients import Gramian

CLEAN, FLIPPED = [1.0, 0.0, 0.1], [-1.0, 0.1, 0.0]


def two_camps(clean: int, flipped: int) -> tuple[Gramian, torch.Tensor]:
    """Clean rows agree, flipped ones agree, and the two oppose each other."""
    rows = torch.tensor([CLEAN] * clean + [FLIPPED] * flipped).double()
    return Gramian(rows @ rows.T), torch.tensor([0.0] * clean + [1.0] * flipped)


def lines(table):
    return {row["first"]: row for row in table.to_dict("records")}


def test_the_first_row_decides_which_camp_is_kept():
    gramian, flipped = two_camps(12, 8)
    found = lines(purity(gramian, flipped, GAF(0.5), microbatches=5, draws=400))
    clean, corrupted = found["clean"], found["corrupted"]
    assert clean["flipped_accepted"] == 0
    assert corrupted["flipped_accepted"] == 1
    assert math.isnan(clean["flipped_accepted_low"]), "all alike bears no interval"
    assert clean["macrobatches"] + corrupted["macrobatches"] == found["any"]["macrobatches"] == 400
    assert clean["macrobatches"] / 400 == pytest.approx(0.6, abs=0.1)
    for row in found.values():
        whole = row["accepted"] * row["flipped_accepted"]
        whole += (1 - row["accepted"]) * row["flipped_rejected"]
        assert whole == pytest.approx(row["flipped_all"])


def test_pairs_are_accepted_as_often_as_they_agree():
    gramian, flipped = two_camps(12, 8)
    row = lines(purity(gramian, flipped, GAF(0.5), draws=1500))["any"]
    pairs = math.comb(12, 2) + math.comb(8, 2)
    assert row["accepted"] == row["stepped"] == pytest.approx(pairs / math.comb(20, 2), abs=0.04)
    assert row["flipped_accepted"] == pytest.approx(math.comb(8, 2) / pairs, abs=0.04)
    # A rejected pair holds one of each camp.
    assert row["flipped_rejected"] == pytest.approx(0.5)
    assert row["flipped_all"] == pytest.approx(0.4)
    assert row["accepted_low"] < row["accepted"] < row["accepted_high"]


def test_averaging_rejects_nothing():
    gramian, flipped = two_camps(6, 4)
    row = lines(purity(gramian, flipped, Mean(), draws=50))["any"]
    assert row["accepted"] == 1
    assert row["flipped_accepted"] == row["flipped_all"] == pytest.approx(0.4)
    assert math.isnan(row["flipped_rejected"])


def test_a_microbatch_is_corrupted_when_it_holds_more_than_the_average():
    gramian = Gramian(torch.eye(10).double())
    shares = torch.linspace(0.3, 0.5, 10)
    found = lines(purity(gramian, shares, GAF(0.5), draws=400))
    assert found["any"]["accepted"] == 0
    assert math.isnan(found["any"]["flipped_accepted"])
    # Half of the rows are above the average.
    assert found["corrupted"]["macrobatches"] == pytest.approx(200, abs=40)
    assert found["corrupted"]["flipped_all"] > found["clean"]["flipped_all"]


def test_the_interval_deletes_one_row_at_a_time():
    shares = torch.tensor([0.1, 0.5, 0.2, 0.9, 0.4, 0.3], dtype=torch.float64)
    row = lines(purity(Gramian(torch.eye(6).double()), shares, Mean(), draws=1, seed=7))["any"]
    # One pass: three macrobatches of two rows, each row in one of them.
    pairs = shares[torch.randperm(6, generator=torch.Generator().manual_seed(7))].reshape(3, 2)
    without = torch.stack(
        [pairs[[j for j in range(3) if j != i]].mean() for i in (0, 0, 1, 1, 2, 2)]
    )
    error = math.sqrt(5 / 6 * float((without - without.mean()).square().sum()))
    reach = 2.5706 * error  # Student's .975 quantile with 5 degrees of freedom
    assert row["flipped_all"] == pytest.approx(float(shares.mean()))
    assert row["flipped_all_high"] == pytest.approx(min(float(shares.mean()) + reach, 1), abs=1e-4)
    assert row["flipped_all_low"] == pytest.approx(max(float(shares.mean()) - reach, 0), abs=1e-4)


def test_the_seed_decides_the_draws():
    gramian, flipped = two_camps(12, 8)
    one, again, other = (
        purity(gramian, flipped, GAF(0.5), draws=30, seed=seed) for seed in (0, 0, 1)
    )
    assert one.equals(again)
    assert not one.equals(other)


def test_mistakes_are_explained():
    gramian, flipped = two_camps(3, 2)
    with pytest.raises(UserError, match=r"5 rows, microbatches=6"):
        purity(gramian, flipped, GAF(), microbatches=6)
    with pytest.raises(UserError, match=r"\(4,\) shares"):
        purity(gramian, flipped[1:], GAF())
    with pytest.raises(UserError, match="SignAgreement needs the gradients"):
        purity(gramian, flipped, SignAgreement())
