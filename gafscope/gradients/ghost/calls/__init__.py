"""How each torch function uses its parameters; one family of functions a file."""

from __future__ import annotations

from collections.abc import Callable

from gafscope.gradients.ghost.calls.convolution import convolution, transposed_convolution
from gafscope.gradients.ghost.calls.elementwise import add, expand, multiply, subtract
from gafscope.gradients.ghost.calls.embedding import embedding, embedding_bag
from gafscope.gradients.ghost.calls.generic import generic
from gafscope.gradients.ghost.calls.linear import addmm, linear, matmul
from gafscope.gradients.ghost.calls.normalization import (
    batch_norm,
    group_norm,
    instance_norm,
    layer_norm,
    rms_norm,
)
from gafscope.gradients.ghost.calls.use import Maker, Use

HANDLERS: dict[str, Callable[[Use], Maker | None]] = {
    "linear": linear,
    "addmm": addmm,
    **dict.fromkeys(("matmul", "__matmul__", "mm"), matmul),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), convolution),
    **dict.fromkeys(
        ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), transposed_convolution
    ),
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "group_norm": group_norm,
    "instance_norm": instance_norm,
    "batch_norm": batch_norm,
    "embedding": embedding,
    "embedding_bag": embedding_bag,
    **dict.fromkeys(("add", "__add__", "__radd__", "add_", "__iadd__"), add),
    **dict.fromkeys(("sub", "__sub__", "sub_", "__isub__"), subtract),
    **dict.fromkeys(("mul", "__mul__", "__rmul__"), multiply),
    "expand": expand,
}


def maker_of(use: Use) -> Maker:
    """Find out how to turn a call's output gradients into its contributions.

    Args:
        use: The call.

    Returns:
        The maker.

    Raises:
        Unsupported: If there is no exact way.
    """
    handler = HANDLERS.get(use.call.name)
    return (handler(use) if handler is not None else None) or generic(use)


__all__ = ["HANDLERS", "Maker", "Use", "maker_of"]
