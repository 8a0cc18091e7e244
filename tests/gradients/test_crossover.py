from __future__ import annotations

import time
from functools import partial

import pytest
from gradient_cases import batch, loss, make

from gafscope.errors import UserError
from gafscope.gradients import choice, gramian, microbatch_gradients
from gafscope.gradients.crossover import fastest_first
from gafscope.gradients.problem import Problem, make_problem


def a_problem(k: int = 12, n: int = 24) -> Problem:
    return make_problem(make("mlp"), loss, batch("mlp", n), k, 0)


class Clock:
    """Stands for the engines: takes a while, and counts."""

    def __init__(self, milliseconds: dict[str, float]):
        self.milliseconds = milliseconds
        self.calls: list[tuple[str, int]] = []

    def __call__(self, problem: Problem, name: str) -> None:
        self.calls.append((name, problem.k))
        time.sleep(self.milliseconds[name] / 1000)


@pytest.mark.parametrize(
    ("fastest", "order"),
    [
        ("ghost", ["ghost", "vmap", "loop"]),
        ("vmap", ["vmap", "ghost", "loop"]),
        ("loop", ["loop"]),
    ],
)
def test_the_fastest_engine_comes_first_and_none_after_the_one_that_takes_all(fastest, order):
    names = ["ghost", "vmap", "loop"]
    clock = Clock({name: 1 if name == fastest else 25 for name in names})
    assert fastest_first(a_problem(), names, clock) == order


def test_a_model_is_timed_once_for_each_size_on_at_most_16_microbatches():
    problem, clock = a_problem(24, 24), Clock({"vmap": 1, "loop": 5})
    for _ in range(3):
        fastest_first(problem, ["vmap", "loop"], clock)
    assert len(clock.calls) == 6
    assert {k for _, k in clock.calls} == {16}
    other = make_problem(problem.model, loss, batch("mlp", 24), 6, 0)
    fastest_first(other, ["vmap", "loop"], clock)
    assert len(clock.calls) == 12


@pytest.mark.parametrize("error", [UserError("no"), RuntimeError("no"), MemoryError()])
@pytest.mark.parametrize(
    ("fastest", "order"),
    [("loop", ["ghost", "loop"]), ("vmap", ["ghost", "vmap", "loop"])],
)
def test_an_engine_that_fails_comes_first_to_tell_why_and_then_the_fastest(error, fastest, order):
    clock = Clock({name: 1 if name == fastest else 25 for name in ("vmap", "loop")})

    def measure(problem: Problem, name: str) -> None:
        if name == "ghost":
            raise error
        clock(problem, name)

    problem, names = a_problem(), ["ghost", "vmap", "loop"]
    assert fastest_first(problem, names, measure) == order
    timed = len(clock.calls)
    assert fastest_first(problem, names, measure) == order
    assert len(clock.calls) == timed, "a failure is remembered as well"


def test_where_all_fail_the_usual_order_stays():
    def measure(problem: Problem, name: str) -> None:
        raise RuntimeError("no")

    names = ["ghost", "vmap", "loop"]
    assert fastest_first(a_problem(), names, measure) == names


@pytest.mark.parametrize("measure", [gramian, microbatch_gradients])
@pytest.mark.parametrize("k", [2, 12])
def test_what_a_gpu_would_do_gives_the_same_numbers_whichever_engine_wins(measure, k, monkeypatch):
    model, data = make("mlp"), batch("mlp", 48)
    usual = measure(model, loss, data, k, engine="loop")
    for fastest in ("ghost", "vmap", "loop"):
        monkeypatch.setattr(choice, "_on_gpu", lambda problem: True)
        monkeypatch.setattr(choice, "fastest_first", partial(_led, fastest))
        found = measure(model, loss, data, k)
        assert found.engine == (fastest if fastest != "ghost" or measure is gramian else "vmap")
        if measure is gramian:
            assert (found.matrix - usual.matrix).norm() < 1e-5 * usual.matrix.norm()


def test_a_gpu_times_the_real_engines(monkeypatch):
    monkeypatch.setattr(choice, "_on_gpu", lambda problem: True)
    model, data = make("mlp"), batch("mlp", 48)
    first = gramian(model, loss, data, 2)
    assert first.engine in ("ghost", "vmap", "loop")
    assert first.notes == ()
    assert gramian(model, loss, data, 2).engine == first.engine


def _led(first: str, problem: Problem, names: list[str], run: object) -> list[str]:
    return [first, *(n for n in names if n != first)] if first in names else names
