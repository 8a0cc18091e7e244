"""The plan: which calls of a forward pass use which parameters, and where their samples are.

Made once for a model and a kind of batch from two small forward passes, of 2 and of 3 samples:
the dimensions whose size follows the number of samples hold the samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from torch.utils import _pytree as pytree

from gafscope.gradients.ghost.places import Place, Unsupported, place_of
from gafscope.gradients.ghost.trace import CallTrace, differentiable, tensors_in
from gafscope.gradients.isolation import kept_buffers
from gafscope.gradients.problem import Problem

# How a program learns a tensor's values, to branch on them.
_LOOKS = ("__bool__", "__int__", "__float__", "__index__", "item", "tolist")


@final
@dataclass(frozen=True)
class Call:
    """One call that involves parameters.

    Attributes:
        name: The function's name.
        derives: It makes a tensor of parameters alone (a transpose, a slice ...), whose own
            uses count. Otherwise it uses parameters on samples.
        keys: For each tensor argument, the parameter or derived tensor that it is, or None.
        inputs: For each tensor argument, where its samples are; None where it has none.
        outputs: For each differentiable output, where its samples are.
        made: For each differentiable output, its key if this call derives it.
    """

    name: str
    derives: bool
    keys: tuple[str | None, ...]
    inputs: tuple[Place | None, ...]
    outputs: tuple[Place | None, ...]
    made: tuple[str, ...]


@final
@dataclass(frozen=True)
class Plan:
    """What a forward pass will do.

    Attributes:
        calls: The calls that involve parameters, in their order.
        random: The pass draws random numbers.
        certain: The check could tell all samples apart in all calls. A plan of which this is
            not so holds for the batch that it was checked on.
    """

    calls: tuple[Call, ...]
    random: bool
    certain: bool
    tolerance: float


@final
@dataclass(eq=False)
class Logged:
    """What the survey keeps of a call."""

    name: str
    sources: list[str | None]
    inputs: list[tuple[int, ...]]
    outputs: list[tuple[int, ...]]
    mixes: bool


@final
class Survey(CallTrace):
    """Logs the calls of a small forward pass.

    Follows parameters, and everything that does not depend on the batch's values, as it may
    turn out to be made of parameters alone.
    """

    def __init__(self, problem: Problem, batch: Any):
        super().__init__(problem.parameters)
        self.log: list[Logged] = []
        self.decides = False
        # Tensors that depend on the batch; held, so that no other takes their id.
        self._fed = {id(tensor): tensor for tensor in pytree.tree_leaves(batch)}

    def pass_by(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Remember what depends on the batch."""
        result = func(*args, **kwargs)
        if self._is_fed((args, kwargs)):
            self._feed(result)
            self.decides |= getattr(func, "__name__", "") in _LOOKS
        return result

    def see(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Log a call."""
        given = tensors_in((args, kwargs))
        sources = [self.tracked.get(id(tensor), (None,))[0] for tensor in given]
        fed = self._is_fed((args, kwargs))
        shapes = [tuple(tensor.shape) for tensor in given]
        result = func(*args, **kwargs)
        outputs = differentiable(result)
        if outputs:
            made = [tuple(tensor.shape) for tensor in outputs]
            self.log.append(Logged(call_name(func), sources, shapes, made, fed))
        if fed:
            self._feed(result)
        else:
            for j, tensor in enumerate(outputs):
                self.tracked[id(tensor)] = (derived_key(len(self.log) - 1, j), tensor)
        return result

    def _is_fed(self, value: Any) -> bool:
        return any(id(tensor) in self._fed for tensor in tensors_in(value))

    def _feed(self, value: Any) -> None:
        self._fed |= {id(tensor): tensor for tensor in tensors_in(value)}


def survey(problem: Problem, samples: int) -> tuple[list[Logged], bool]:
    """Run a small forward pass and log its calls.

    Args:
        problem: The measurement.
        samples: How many samples; the batch's first ones, repeated where it has fewer.

    Returns:
        The log, and whether the pass looked at values of the batch.
    """
    batch = problem.samples(range(samples))
    trace = Survey(problem, batch)
    with kept_buffers(problem.model), trace:
        problem.loss(problem.model, batch)
    return trace.log, trace.decides


def compare(two: list[Logged], three: list[Logged]) -> tuple[Call, ...]:
    """Make the plan from the logs of a pass of 2 samples and of one of 3.

    Args:
        two: The log of the pass of 2 samples.
        three: That of 3.

    Returns:
        The calls that involve parameters or tensors made of parameters alone.

    Raises:
        Unsupported: If the passes made different calls, or no single dimension holds the samples.
    """
    if [(call.name, call.sources) for call in two] != [(call.name, call.sources) for call in three]:
        raise Unsupported("the model makes other calls when the batch has other samples")
    calls: list[Call] = []
    derived: set[str] = set()
    for index, (a, b) in enumerate(zip(two, three, strict=True)):
        keys = [
            source if source is not None and (not is_derived(source) or source in derived) else None
            for source in a.sources
        ]
        if not any(keys):
            continue
        inputs = [
            None if key else place_of(*shapes)
            for key, *shapes in zip(keys, a.inputs, b.inputs, strict=True)
        ]
        outputs = [place_of(*shapes) for shapes in zip(a.outputs, b.outputs, strict=True)]
        derives = not any(outputs)
        if derives and (a.mixes or any(inputs)):
            raise Unsupported(f"'{a.name}' mixes the samples with a parameter")
        made = tuple(derived_key(index, j) for j in range(len(outputs))) if derives else ()
        derived.update(made)
        calls.append(Call(a.name, derives, tuple(keys), tuple(inputs), tuple(outputs), made))
    return tuple(calls)


def call_name(func: Callable[..., Any]) -> str:
    """Give the name of a torch function, e.g. "linear" or "T.__get__"."""
    name = getattr(func, "__name__", repr(func))
    if name == "__get__":
        owner = getattr(func, "__self__", None)
        return f"{getattr(owner, '__name__', '')}.__get__"
    return name


def derived_key(call: int, output: int) -> str:
    """Name a derived tensor; no parameter's name has a space."""
    return f"derived {call} {output}"


def is_derived(key: str) -> bool:
    """Tell derived tensors from parameters."""
    return key.startswith("derived ")
