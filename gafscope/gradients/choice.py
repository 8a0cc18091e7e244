"""Which engine does a measurement, and what happens when it cannot."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import TypeVar

import torch

from gafscope.errors import UserError, unknown_name
from gafscope.gradients.budget import Plan, ghost_plan, plan
from gafscope.gradients.crossover import fastest_first
from gafscope.gradients.ghost import Coupled, Mismatch, Unsupported
from gafscope.gradients.isolation import untouched
from gafscope.gradients.measured import compute_rows, measure
from gafscope.gradients.problem import Problem

T = TypeVar("T")

_ENGINES = ("loop", "vmap", "ghost")
# From this many samples on, one microbatch keeps the processor busy, and the loop has nothing
# to lose to engines that take all samples at once.
_LOOP_FROM = 16
# What the allocators say when they have no memory left.
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def run_engine(
    problem: Problem,
    engine: str,
    memory_budget: int | None,
    whole: bool,
    work: Callable[[str, Plan], T],
) -> tuple[T, str, tuple[str, ...]]:
    """Do the work with the wished engine; "auto" turns to the next one where one fails.

    Args:
        problem: The measurement.
        engine: "loop", "vmap", "ghost" or "auto".
        memory_budget: Bytes; None for no limit.
        whole: All rows are wanted together.
        work: Called with an engine's name and the sizes that keep it within the budget.

    Returns:
        What the work gave, the engine that did it, and notes for the reader.

    Raises:
        UserError: If there is no such engine, it was asked for and fails, the samples depend on
            each other, or the budget is too small.
    """
    names = _candidates(problem, engine, whole)
    reasons: list[str] = []
    trusted = None
    with untouched(problem.model):
        if len(names) > 1 and _on_gpu(problem):
            names = _by_speed(problem, names, memory_budget, whole)
        for name in names[:-1]:
            if trusted is not None and name != trusted:
                continue
            try:
                result, used_less = _within_memory(
                    problem, name, memory_budget, whole, work, alone=len(names) == 1
                )
                return result, name, (*_told(reasons, name), *used_less)
            except Coupled as error:
                if problem.u == 1:
                    raise _coupled(error) from error
                reason = _reason(error)
            except UserError:
                raise
            except (Unsupported, RuntimeError, MemoryError) as error:
                reason = _reason(error)
                if isinstance(error, Mismatch):
                    # Who knows what else this model does that vmap would not see either.
                    trusted = "loop"
            reasons.append(f"{name} cannot take this model ({reason})")
        name = names[-1]
        try:
            result, used_less = _within_memory(
                problem, name, memory_budget, whole, work, alone=len(names) == 1
            )
        except Coupled as error:
            raise _coupled(error) from error
        except Unsupported as error:
            raise UserError(
                f"engine='ghost' cannot take this model exactly: {_reason(error)}. "
                "Use engine='auto', which turns to another engine."
            ) from error
        except RuntimeError as error:
            if name != "vmap" or isinstance(error, UserError):
                raise
            raise UserError(
                f"engine='vmap' cannot differentiate this model: {_reason(error)}. "
                "Use engine='loop', which takes any model."
            ) from error
        return result, name, (*_told(reasons, name), *used_less)


def _told(reasons: list[str], name: str) -> tuple[str, ...]:
    return ("; ".join(reasons) + f"; {name} did.",) if reasons else ()


def _candidates(problem: Problem, engine: str, whole: bool) -> list[str]:
    """List the engines to try, the last one being the one whose failure is the user's."""
    if engine not in (*_ENGINES, "auto"):
        raise unknown_name("engine", engine, [*_ENGINES, "auto"])
    if engine == "ghost" and whole:
        raise UserError(
            "engine='ghost' computes Gramians without gradient rows, so it cannot give the rows; "
            "use engine='auto', 'vmap' or 'loop', or ask for the Gramian."
        )
    if engine != "auto":
        return [engine]
    if problem.k == 1 or (problem.u >= _LOOP_FROM and not _on_gpu(problem)):
        return ["loop"]
    return ["vmap", "loop"] if whole else ["ghost", "vmap", "loop"]


def _on_gpu(problem: Problem) -> bool:
    return next(iter(problem.parameters.values())).is_cuda


def _by_speed(
    problem: Problem, names: list[str], memory_budget: int | None, whole: bool
) -> list[str]:
    """Order the engines by what they take on a few microbatches."""

    def run(part: Problem, name: str) -> object:
        def work(name: str, sizes: Plan) -> object:
            if whole:
                return compute_rows(part, name, sizes.chunk, 0, part.k)
            return measure(part, name, sizes, combines=False)

        return _within_memory(part, name, memory_budget, whole, work, alone=False)

    return fastest_first(problem, names, run)


def _within_memory(
    problem: Problem,
    name: str,
    memory_budget: int | None,
    whole: bool,
    work: Callable[[str, Plan], T],
    alone: bool,
) -> tuple[T, tuple[str, ...]]:
    """Do the work, with half of the microbatches at once for as long as memory runs out."""
    if name == "ghost":
        sizes = ghost_plan(problem, memory_budget, alone)
    else:
        sizes = plan(problem, memory_budget, name != "loop", whole)
    notes: tuple[str, ...] = ()
    while True:
        try:
            return work(name, sizes), notes
        except (RuntimeError, MemoryError) as error:
            if sizes.chunk <= 1 or not _is_out_of_memory(error):
                raise
        sizes = sizes.halved(problem.k)
        notes = (f"memory ran out; {sizes.chunk} microbatches at once fitted.",)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        sign in str(error) for sign in _NO_MEMORY
    )


def _coupled(error: Coupled) -> UserError:
    return UserError(
        "The samples of this batch depend on each other, so that none has a gradient of its own: "
        f"{_reason(error)}. Measure microbatches of several samples with engine='loop', or write "
        "the loss sample by sample."
    )


def _reason(error: Exception) -> str:
    first_line = (str(error).strip() or repr(error)).splitlines()[0]
    return textwrap.shorten(first_line, 200, placeholder=" ...").rstrip(".")
