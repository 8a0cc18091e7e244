"""What a rank concludes from the words of the others, by a clock that the test moves."""

from __future__ import annotations

import pytest

from gafscope.distributed import board as module
from gafscope.distributed.board import Board


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def exchange(boards: list[Board], silent: tuple[int, ...] = ()) -> None:
    words = {rank: board.own() for rank, board in enumerate(boards) if rank not in silent}
    for rank, board in enumerate(boards):
        for other, word in words.items():
            if other != rank:
                board.note(other, word)


def boards_of(count: int) -> list[Board]:
    boards = [Board(rank, count) for rank in range(count)]
    exchange(boards)
    return boards


def test_ranks_that_go_on_are_left_alone(clock):
    boards = boards_of(3)
    for step in range(20):
        clock[0] += 5
        for board in boards:
            board.arrive(step)
        exchange(boards)
        assert [board.verdict(8) for board in boards] == [None] * 3


def test_a_step_may_take_longer_than_the_time_out_if_all_take_it(clock):
    """Nobody waits while all compute; the first to arrive waits from then on."""
    boards = boards_of(2)
    for _ in range(10):
        clock[0] += 5
        exchange(boards)
        assert boards[0].verdict(8) is None
    boards[0].arrive(0)
    exchange(boards)
    clock[0] += 7
    exchange(boards)
    assert boards[0].verdict(8) is None
    clock[0] += 2
    exchange(boards)
    assert boards[0].verdict(8).startswith("Rank 1 has held up the others for 8 s; it had not beg")


def test_the_one_that_is_behind_is_named_with_its_last_step(clock):
    boards = boards_of(3)
    for step in range(5):
        for board in boards:
            board.arrive(step)
    boards[0].arrive(5)
    boards[2].arrive(5)
    exchange(boards)
    clock[0] += 9
    exchange(boards)
    for board in (boards[0], boards[2]):
        assert "Rank 1 has held up the others for 8 s; its last step was 4." in board.verdict(8)


def test_one_that_falls_silent_is_named_even_if_its_last_word_is_old(clock):
    boards = boards_of(2)
    boards[1].arrive(0)
    exchange(boards)
    for step in range(7):
        boards[0].arrive(step)
    for _ in range(5):
        clock[0] += 2
        exchange(boards, silent=(1,))
    assert "Rank 1 has not answered for 8 s; its last step was 5." in boards[0].verdict(8)
    assert boards[0].silent(5) == [(1, 5)] and boards[0].silent(20) == []


def test_one_that_never_came_is_named(clock):
    board = Board(0, 2)
    clock[0] += 9
    assert board.verdict(8).startswith("Rank 1 has not appeared within 8 s.")


def test_one_that_is_done_is_awaited_no_longer(clock):
    boards = boards_of(2)
    boards[0].note(1, Board.DONE)
    boards[0].arrive(0)
    clock[0] += 100
    assert boards[0].verdict(8) is None and boards[0].silent(1) == []


def test_a_rank_that_was_stopped_itself_blames_nobody(clock):
    boards = boards_of(2)
    boards[1].arrive(0)
    exchange(boards)
    clock[0] += 100
    boards[0].forgive()
    assert boards[0].verdict(8) is None


def test_the_lowest_that_is_alive_speaks(clock):
    boards = boards_of(3)
    assert [board.lowest_alive(2, 60) for board in boards] == [True, False, False]
    for _ in range(3):
        clock[0] += 1
        exchange(boards, silent=(0,))
    assert [board.lowest_alive(2, 60) for board in boards[1:]] == [True, False]
    # One that has not begun is waited for.
    late = Board(1, 2)
    assert not late.lowest_alive(2, 60)
    clock[0] += 61
    assert late.lowest_alive(2, 60)
