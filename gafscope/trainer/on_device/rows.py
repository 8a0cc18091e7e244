# pyright: reportPrivateImportUsage=false
"""The gradients of a macrobatch in one tensor, and vectors cut into gradients again.

Shape legend: k microbatches; P numbers of a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from gafscope.errors import UserError
from gafscope.gradients.running import Gradient


@final
class DeviceRows:
    """Holds k gradients as rows, each parameter in its own memory layout (channels last, say).

    Args:
        k: Number of gradients.
        parameters: The parameters, all of one type on one device.

    Attributes:
        rows_kP: The gradients; zeros for parameters that no microbatch uses.
    """

    def __init__(self, k: int, parameters: Sequence[nn.Parameter]):
        self._layouts = [torch.empty_like(p, device="meta") for p in parameters]
        self._widths = [p.numel() for p in parameters]
        self._used: list[bool] | None = None
        first = parameters[0]
        self.rows_kP = torch.zeros(k, sum(self._widths), dtype=first.dtype, device=first.device)

    def put(self, i: int, gradient: Gradient) -> None:
        """Copy a gradient in.

        Args:
            i: Its microbatch.
            gradient: One tensor a parameter, None where the parameter is unused.

        Raises:
            UserError: If the microbatches use different parameters.
        """
        used = [part is not None for part in gradient]
        self._used = used if self._used is None else self._used
        if used != self._used:
            raise UserError(
                "With device_decision every microbatch must use the same parameters, but some are "
                "used by one microbatch and not by another. Set device_decision=False."
            )
        there = [part for part in gradient if part is not None]
        views = [view for view, yes in zip(self._views(self.rows_kP[i]), used, strict=True) if yes]
        torch._foreach_copy_(views, there)

    def as_gradients(self, vector_P: Tensor) -> Gradient:
        """Cut a vector into one tensor a parameter, None where the parameter is unused.

        Args:
            vector_P: The vector, whose memory they share.
        """
        assert self._used is not None
        views = self._views(vector_P)
        return [view if yes else None for view, yes in zip(views, self._used, strict=True)]

    def _views(self, vector_P: Tensor) -> list[Tensor]:
        return [
            part.as_strided(layout.shape, layout.stride(), part.storage_offset())
            for part, layout in zip(vector_P.split(self._widths), self._layouts, strict=True)
        ]
