"""Where the rows of a macrobatch are kept until its Gramian is computed.

Shape legend: k rows; n numbers of a parameter.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from gafscope import geometry
from gafscope.errors import unknown_name
from gafscope.gradients import GradientRows, Gramian
from gafscope.gradients.types import sum_of_layers
from gafscope.instruments.capture import Row

GHOST = "ghost"
MEMORY = ("rows", "bf16", "cpu", "disk", GHOST)
# Blocks that stay in the processor's cache; a GPU wants few large kernels instead.
_BLOCK = {"cpu": 1 << 18, "cuda": 1 << 23}


@final
class Rows:
    """Keeps rows and multiplies them.

    Args:
        memory: "rows" keeps them as they come; "bf16" in half the memory; "cpu" in the host's
            memory; "disk" in files that are mapped into memory. With "ghost" there are none
            (see `GhostRows`).

    Raises:
        UserError: If there is no such place.
    """

    def __init__(self, memory: str):
        if memory not in MEMORY:
            raise unknown_name("memory", memory, MEMORY)
        self._memory = memory
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._rows: list[Row] = []
        self._scratch: dict[torch.device, Tensor] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: Row) -> None:
        """Keep a row.

        Args:
            row: The row; with memory="rows" its tensors themselves are kept.
        """
        if self._memory == "bf16":
            row = [None if part is None else part.to(torch.bfloat16) for part in row]
        elif self._memory == "cpu":
            row = [None if part is None else part.cpu() for part in row]
        elif self._memory == "disk":
            row = [None if part is None else self._mapped(part, j) for j, part in enumerate(row)]
        self._rows.append(row)

    def drop(self) -> None:
        """Let go of all rows."""
        self._rows = []

    def close(self) -> None:
        """Let go of everything, the files too."""
        self.drop()
        self._scratch.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def gramian(
        self, parameters: Mapping[str, nn.Parameter], layers: bool, scale: float
    ) -> Gramian:
        """Multiply every row with every row.

        Args:
            parameters: The parameters by name, one an entry of a row.
            layers: Keep the matrix of each parameter as well.
            scale: What the loss was multiplied by (a GradScaler's factor); taken out again.

        Returns:
            The Gramian in float64, on the CPU.
        """
        matrices = {
            name: geometry.blank_rows(self._multiply([row[j] for row in self._rows]) / scale**2)
            for j, name in enumerate(parameters)
        }
        return Gramian(sum_of_layers(matrices), matrices if layers else {}, engine="hooks")

    def stacked(self, parameters: Mapping[str, nn.Parameter], scale: float) -> GradientRows:
        """Give the rows as rules take them.

        Args:
            parameters: As in `gramian`.
            scale: As in `gramian`.

        Returns:
            The rows in the parameters' own types and places; zeros where one was not reached.
        """
        named = {}
        for j, (name, parameter) in enumerate(parameters.items()):
            stack = torch.zeros(len(self._rows), *parameter.shape, dtype=parameter.dtype)
            stack = stack.to(parameter.device)
            for i, row in enumerate(self._rows):
                part = row[j]
                if part is not None:
                    stack[i] = part
            named[name] = stack.div_(scale) if scale != 1 else stack
        return GradientRows(named, engine="hooks")

    def row(self, i: int, like: Sequence[nn.Parameter]) -> Row:
        """Give one row in the parameters' types and places.

        Args:
            i: Which.
            like: The parameters.
        """
        pairs = zip(self._rows[i], like, strict=True)
        return [None if part is None else part.to(p.device, p.dtype) for part, p in pairs]

    def _multiply(self, parts: Sequence[Tensor | None]) -> Tensor:
        """Multiply one parameter's part of the rows in float64, block by block."""
        k = len(parts)
        total = torch.zeros(k, k, dtype=torch.float64)
        known = [part for part in parts if part is not None]
        if not known:
            return total
        n, device = known[0].numel(), known[0].device
        flat = _flat_parts(parts)
        width = min(max(_BLOCK.get(device.type, _BLOCK["cuda"]) // k, 1), n)
        wide_kw = self._buffer(device, k * width)
        sums = torch.zeros(k, k, dtype=torch.float64, device=device)
        for start in range(0, n, width):
            block = wide_kw[: k * min(width, n - start)].view(k, -1)
            for i, part in enumerate(flat):
                if part is None:
                    block[i] = 0
                else:
                    block[i].copy_(part[start : start + width])
            sums += block @ block.T
        return ((sums + sums.T) / 2).cpu()

    def _buffer(self, device: torch.device, size: int) -> Tensor:
        if device not in self._scratch or len(self._scratch[device]) < size:
            self._scratch[device] = torch.empty(size, dtype=torch.float64, device=device)
        return self._scratch[device]

    def _mapped(self, part: Tensor, j: int) -> Tensor:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="gafscope-rows-")
        path = Path(self._folder.name) / f"{len(self._rows)}-{j}"
        size = part.numel()
        # Written over at the next macrobatch.
        file = torch.from_file(str(path), shared=True, size=size, dtype=part.dtype)
        return file.view(part.shape).copy_(part)


def _flat_parts(parts: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Lay each part end to end, all in one order, without a copy where channels-last allows."""
    strides = {part.stride() for part in parts if part is not None}
    turned = len(strides) == 1 and all(
        part.ndim == 4 and not part.is_contiguous() for part in parts if part is not None
    )
    order = (lambda part: part.permute(0, 2, 3, 1)) if turned else (lambda part: part)
    return [None if part is None else order(part).reshape(-1) for part in parts]
