from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import torch
from random_rows import gramian

from gafscope.aggregation import CliqueGAF
from gafscope.aggregation.max_clique import largest_clique, peeled_clique


def graph(k: int, density: float, seed: int, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    agree = np.triu(random.random((k, k)) < density, 1)
    distance = random.choice([0.1, 0.2], size=(k, k)) if ties else random.random((k, k))
    distance = np.triu(distance, 1)
    return agree | agree.T, distance + distance.T


def bits(agree: np.ndarray) -> list[int]:
    return [sum(1 << int(j) for j in np.flatnonzero(row)) for row in agree]


def best_of_all(agree: np.ndarray, distance: np.ndarray) -> list[int]:
    found = []
    for size in range(1, len(agree) + 1):
        for members in itertools.combinations(range(len(agree)), size):
            pairs = list(itertools.combinations(members, 2))
            if all(agree[pair] for pair in pairs):
                total = round(float(sum(distance[pair] for pair in pairs)), 10)
                found.append((-size, total, list(members)))
    return min(found)[2]


@pytest.mark.parametrize("ties", [False, True])
def test_the_exact_search_finds_the_largest_tightest_first_set(ties):
    for seed in range(60):
        density = [0.0, 0.3, 0.6, 0.8, 1.0][seed % 5]
        agree, distance = graph(1 + seed % 8, density, seed, ties)
        found = largest_clique(bits(agree), distance.tolist())
        assert found == best_of_all(agree, distance), seed


def test_a_set_planted_among_32_rows_is_found():
    for seed in range(5):
        agree, distance = graph(32, 0.5, seed)
        planted = np.random.default_rng(seed).permutation(32)[:14]
        agree[np.ix_(planted, planted)] = True
        np.fill_diagonal(agree, False)
        assert largest_clique(bits(agree), distance.tolist()) == sorted(planted.tolist())


def hard_graphs():
    yield graph(32, 0.9, 0)
    # Moon and Moser: triples that disagree give the most largest sets there can be, 3^10 x 2.
    agree, distance = graph(32, 1.0, 1)
    agree[np.arange(32)[:, None] // 3 == np.arange(32) // 3] = False
    yield agree, 0.9 + 0.05 * distance


def test_the_exact_search_is_quick_at_32_rows():
    for agree, distance in hard_graphs():
        adjacent, between = bits(agree), distance.tolist()
        started = time.process_time()
        largest_clique(adjacent, between)
        # A tenth of a second, and ten times that with types checked; all sets would take hours.
        assert time.process_time() - started < 20


def test_peeling_gives_a_set_that_agrees_and_that_nothing_can_join():
    for seed in range(40):
        agree, distance = graph(40, [0.2, 0.5, 0.8, 0.95][seed % 4], seed, ties=seed % 2 == 0)
        members = peeled_clique(torch.from_numpy(agree), torch.from_numpy(distance))
        assert members == sorted(members)
        inside = agree[np.ix_(members, members)] | np.eye(len(members), dtype=bool)
        assert inside.all()
        others = np.setdiff1d(np.arange(40), members)
        assert not agree[np.ix_(others, members)].all(1).any()


def test_peeling_by_hand():
    # 0-1-2 all agree; 3 agrees with 0 only; 4 with nobody.
    agree = np.zeros((5, 5), dtype=bool)
    for i, j in ((0, 1), (0, 2), (1, 2), (0, 3)):
        agree[i, j] = agree[j, i] = True
    assert peeled_clique(torch.from_numpy(agree), torch.ones(5, 5).double()) == [0, 1, 2]
    everybody = torch.ones(4, 4, dtype=torch.bool)
    assert peeled_clique(everybody, torch.ones(4, 4).double()) == [0, 1, 2, 3]
    nobody = torch.zeros(3, 3, dtype=torch.bool)
    assert len(peeled_clique(nobody, torch.ones(3, 3).double())) == 1


def test_more_than_32_rows_are_peeled_and_a_clear_majority_is_found():
    random = np.random.default_rng(0)
    mean = random.normal(size=50)
    rows = 0.4 * random.normal(size=(48, 50)) + mean
    rows[30:] = random.normal(size=(18, 50))
    decision = CliqueGAF(0.5)(gramian(rows))
    assert decision.accepted.nonzero().flatten().tolist() == list(range(30))
    # Non-finite rows do not count towards the 32: here the exact search runs.
    rows[32:] = np.nan
    assert int(CliqueGAF(0.5)(gramian(rows)).accepted.sum()) == 30
