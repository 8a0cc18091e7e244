"""How a model treats the samples of its batch: found out on a few of them, aside from the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from gafscope.errors import UserError
from gafscope.gradients.ghost import Coupled, Unsupported
from gafscope.gradients.ghost.check import checked
from gafscope.gradients.ghost.plan import Call as Planned
from gafscope.gradients.ghost.plan import compare, survey
from gafscope.gradients.isolation import seed_everything, untouched
from gafscope.gradients.problem import Problem

SAMPLES = "samples"


@final
@dataclass(eq=False)
class Call:
    """One call of the model: its tensors with one entry a sample, and everything else.

    As a loss it gives every sample a number that depends on all its outputs; which one does not
    matter for finding the samples.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    n: int = field(init=False)

    def __post_init__(self):
        self._leaves, self.structure = pytree.tree_flatten((self.args, self.kwargs))
        sizes = [len(leaf) for leaf in self._leaves if isinstance(leaf, Tensor) and leaf.ndim]
        self.n = sizes[0] if sizes else 0
        self._places = [
            i
            for i, leaf in enumerate(self._leaves)
            if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == self.n
        ]
        self.tensors = [self._leaves[i] for i in self._places]

    def __call__(self, model: Callable[..., Any], batch: Any, /) -> Tensor:
        """Run the model on some samples."""
        leaves = list(self._leaves)
        for i, tensor in zip(self._places, batch, strict=True):
            leaves[i] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, self.structure)
        size = len(batch[0])
        total: Tensor | None = None
        for output in pytree.tree_leaves(model(*args, **kwargs)):
            if isinstance(output, Tensor) and output.requires_grad and output.ndim:
                flat = output.reshape(size, -1).float() if len(output) == size else None
                if flat is not None:
                    weights = torch.arange(1, flat.shape[1] + 1, device=flat.device).cos()
                    part = flat @ weights
                    total = part if total is None else total + part
        if total is None:
            raise Unsupported("the model returns nothing with one entry a sample")
        return total

    @property
    def kind(self) -> Any:
        """What a plan depends on."""
        shapes = tuple((tensor.shape[1:], tensor.dtype) for tensor in self.tensors)
        switches = tuple(leaf for leaf in self._leaves if isinstance(leaf, bool | str))
        return (
            self.structure,
            shapes,
            switches,
            torch.is_autocast_enabled(self.tensors[0].device.type),
        )


@final
class Splitter:
    """Finds out once for each kind of batch how the model treats its samples.

    Args:
        model: The model that the loop calls.
        split: k, or "samples"; None where the batch is one row, for memory="ghost".

    Attributes:
        model: As given.
        asked: What the user asked for, in the words of an error.
        instead: What to do instead.
        looking: Whether the model is being looked at, aside from the loop.
    """

    def __init__(self, model: nn.Module, split: int | str | None):
        self.model, self._split = model, split
        self.asked, self.instead = names_of(split)
        self._plans: dict[Any, tuple[Planned, ...]] = {}
        self.looking = False

    def problem(self, call: Call, parameters: Mapping[str, nn.Parameter]) -> Problem:
        """Cut a batch into rows.

        Args:
            call: The model's call.
            parameters: The watched parameters.

        Raises:
            UserError: If the batch does not divide.
        """
        k = {None: 1, SAMPLES: call.n}.get(self._split, self._split)
        assert isinstance(k, int)
        if self._split is None and not call.n:
            raise UserError(
                f"{self.asked} needs to see the samples, but {type(self.model).__name__} is called "
                f"without a tensor that has one entry a sample; {self.instead}."
            )
        if not call.n or call.n % k:
            raise UserError(
                f"split={self._split!r} must divide the batch that the loop gives to the model, "
                f"but it has {call.n} samples; use split='samples', or drop_last=True."
            )
        u = call.n // k
        batch = [t.detach().reshape(k, u, *t.shape[1:]) for t in call.tensors]
        return Problem(self.model, call, batch, k, u, dict(parameters), seed=0)

    def plan(self, problem: Problem, call: Call) -> tuple[Planned, ...]:
        """Give the plan of the forward pass.

        Args:
            problem: The measurement.
            call: The model's call.

        Raises:
            UserError: If the model cannot be taken exactly, or couples its samples.
        """
        modes = tuple(module.training for module in self.model.modules())
        key = (*call.kind, modes, tuple(map(id, problem.parameters.values())))
        if key in self._plans:
            return self._plans[key]
        self._check_coupling()
        self.looking = True
        try:
            with untouched(self.model):
                seed_everything(self.model, problem.seed)
                two, _ = survey(problem, 2)
                three, decides = survey(problem, 3)
                planned, lasting = compare(two, three), not decides
                # The samples of a single row need not be told apart, and its norm is compared.
                if problem.k > 1:
                    plan = checked(problem, planned, decides)
                    planned, lasting = plan.calls, plan.certain
        except (Unsupported, Coupled) as error:
            raise self._not_exact(error) from error
        finally:
            self.looking = False
        if lasting:
            self._plans[key] = planned
        return planned

    def _check_coupling(self) -> None:
        for name, module in self.model.named_modules():
            if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
                raise UserError(
                    f"{self.asked} cannot take the samples apart, since '{name}' "
                    f"({type(module).__name__} in training mode) normalises them together; use "
                    f"GroupNorm, or {self.instead}."
                )

    def _not_exact(self, error: Exception) -> UserError:
        why = (
            "its samples depend on each other"
            if isinstance(error, Coupled)
            else "they cannot be followed"
        )
        return UserError(
            f"{self.asked} cannot take the samples of this model apart, since {why}: {error}. "
            f"Instead, {self.instead}, or use gafscope.gramian now and then."
        )


def names_of(split: int | str | None) -> tuple[str, str]:
    """Name the setting that needs to see the samples.

    Args:
        split: As `watch` was given it; None where memory="ghost" was.

    Returns:
        What was asked for, and what to do instead.
    """
    if split is None:
        return "memory='ghost'", "use memory='bf16'"
    return "split", "accumulate microbatches"


def check_splittable(model: nn.Module, split: int | str | None) -> None:
    """Refuse models whose own forward pass would not be left to the last bit as it is.

    Args:
        model: The model.
        split: As `watch` was given it; None where memory="ghost" was.

    Raises:
        UserError: If it is compiled or recurrent.
    """
    asked, _ = names_of(split)
    instead = "use gafscope.gramian now and then" if split is not None else "use memory='bf16'"
    if hasattr(model, "_orig_mod"):
        raise UserError(
            f"{asked} needs to see every call of the forward pass, which a compiled model does not "
            f"show; watch it uncompiled, or {instead}."
        )
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase):
            raise UserError(
                f"{asked} would unroll '{name}' ({type(module).__name__}) step by step, which "
                f"changes the loop's own rounding; {instead}."
            )
