"""Rows of a macrobatch that are never made: memory="ghost", by the ghost engine.

Its hooks sit in the loop's own forward and backward (`model_calls.py`), one row a backward. What
the layers contribute waits for the step, where the passes are joined and multiplied.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import final

from torch import Tensor, nn

from gafscope import geometry
from gafscope.errors import UserError
from gafscope.gradients import Gramian
from gafscope.gradients.ghost import Products
from gafscope.gradients.ghost.derived import are_parts, origins, pull_rows
from gafscope.gradients.ghost.joining import join, row_of
from gafscope.gradients.ghost.ledger import Ledger
from gafscope.gradients.ghost.pieces import Piece, Rows
from gafscope.gradients.ghost.plan import Call as Planned
from gafscope.gradients.ghost.run import Pass
from gafscope.gradients.types import sum_of_layers
from gafscope.instruments.capture import Row
from gafscope.instruments.model_calls import ModelCalls, differs
from gafscope.instruments.splitter import Call, Splitter


@final
class Collection:
    """What one backward contributes, kept until the step.

    Args:
        calls: The plan.

    Attributes:
        pieces: Parameter or derived tensor -> contributions, in the order of their arrival.
        derived: Tensors made of parameters alone, each with its graph.
        held: Bytes of whole rows that the step may hold.
    """

    def __init__(self, calls: tuple[Planned, ...]):
        self.calls = calls
        self.pieces: dict[str, list[Piece]] = defaultdict(list)
        self.derived: dict[str, Tensor] = {}
        self.held = 0
        self._versions: list[tuple[Piece, list[int]]] = []

    def derive(self, key: str, tensor: Tensor) -> None:
        """Enter a derived tensor."""
        self.derived[key] = tensor

    def add(self, key: str, piece: Piece) -> None:
        """Enter a contribution."""
        self.pieces[key].append(piece)
        self._versions.append((piece, _versions(piece)))

    def limit(self, held: int) -> None:
        """Hold no more bytes of whole rows than so many, at the step."""
        self.held = held

    def release(self) -> None:
        """Let go of everything."""
        self.pieces.clear()
        self.derived.clear()
        self._versions.clear()

    def check_unchanged(self) -> None:
        """Find out if somebody has written to what waits here.

        Raises:
            UserError: If so.
        """
        if any(_versions(piece) != before for piece, before in self._versions):
            raise UserError(
                "memory='ghost' keeps the inputs of the layers until the optimizer's step, but one "
                "was overwritten before it (a buffer that is filled anew for each microbatch?); "
                "give the model a tensor of its own each time, or use memory='bf16'."
            )
        # Else the pieces could not be let go of one by one.
        self._versions.clear()


@final
class GhostRows:
    """The rows of one macrobatch, from the loop's own forwards and backwards.

    Args:
        splitter: Knows the model.
        parameters: The watched parameters by name.
    """

    def __init__(self, splitter: Splitter, parameters: Mapping[str, nn.Parameter]):
        self._splitter, self._parameters = splitter, parameters
        self._collected: list[Collection] = []
        # Squared norms of the loop's own gradients, which are not kept.
        self._squares: list[float] = []
        self._products = geometry.StreamingProducts()
        self._calls = ModelCalls(splitter, self._begin)

    def drop(self) -> None:
        """Forget all backwards that are over."""
        for collection in self._collected:
            collection.release()
        self._collected, self._squares = [], []

    def close(self) -> None:
        """Take the hooks away and let go of everything."""
        self._calls.close()
        self.drop()

    def add(self, row: Row) -> None:
        """Take what a backward has given.

        Args:
            row: Its gradient, of which the norm alone is kept.

        Raises:
            UserError: If the model was not called once for this backward.
        """
        self._collected.append(self._calls.finish())
        square, _ = self._products(row, [])
        self._squares.append(square)

    def gramian(
        self, parameters: Mapping[str, nn.Parameter], layers: bool, scale: float
    ) -> Gramian:
        """Multiply every row with every row, in factors where that is cheaper.

        Args:
            parameters: The watched parameters by name.
            layers: Keep the matrix of each parameter as well.
            scale: What the loss was multiplied by (a GradScaler's factor); taken out again.

        Returns:
            The Gramian in float64, on the CPU.

        Raises:
            UserError: If a row's norm is not that of the loop's own gradient, or what waits was
                overwritten.
        """
        ledger = _joined(self._collected, parameters)
        matrices = {
            name: geometry.blank_rows(matrix.cpu()) for name, matrix in ledger.grams().items()
        }
        ledger.release()
        whole = sum_of_layers(matrices)
        self._check_norms(whole)
        kept = matrices.items() if layers else ()
        found = {name: matrix / scale**2 for name, matrix in kept}
        return Gramian(whole / scale**2, found, engine="ghost")

    def _begin(self, call: Call) -> tuple[Pass, Collection]:
        problem = self._splitter.problem(call, self._parameters)
        plan = self._splitter.plan(problem, call)
        collection = Collection(plan)
        return Pass(problem, plan, call.n, 1, collection, foreign=True), collection

    def _check_norms(self, matrix: Tensor) -> None:
        """The entries on the diagonal are the squared norms of the loop's own gradients."""
        pairs = zip(matrix.diagonal().tolist(), self._squares, strict=True)
        for i, (found, square) in enumerate(pairs):
            if differs(found, square, found):
                raise UserError(
                    f"The watched call of the model gives backward {i + 1} of this step a gradient "
                    f"of squared norm {found:.4g}, but the loop's own has {square:.4g}: part of it "
                    "does not come from that call (a penalty on the weights, a second call). Use "
                    "memory='bf16', which keeps the gradients themselves."
                )


def _joined(collected: Sequence[Collection], parameters: Mapping[str, nn.Parameter]) -> Ledger:
    """Enter everything in a ledger of one row a pass, letting go of it key by key."""
    first = collected[0]
    for collection in collected:
        collection.check_unchanged()
    _pull_back(collected, parameters)
    ledger = Ledger(parameters, first.calls, len(collected), Products(), keep=False)
    ledger.limit(max(collection.held for collection in collected))
    for key in dict.fromkeys(key for collection in collected for key in collection.pieces):
        like = parameters[key] if key in parameters else first.derived[key]
        if key not in parameters:
            ledger.derive(key, like)
        passes = [collection.pieces.pop(key, []) for collection in collected]
        joined = join(passes, like.detach())
        passes.clear()
        for piece in joined:
            ledger.add(key, piece)
    return ledger


def _pull_back(collected: Sequence[Collection], parameters: Mapping[str, nn.Parameter]) -> None:
    """Turn rows of derived tensors into rows of parameters, each through its own pass's graph.

    Views of one and the same part of a parameter in all passes are left as they are.
    """
    views = _common_views(collected, parameters)
    for collection in collected:
        made_of = origins(collection.calls)
        for key in [key for key in collection.pieces if key in made_of and key not in views]:
            tensor, pieces = collection.derived[key], collection.pieces.pop(key)
            row = row_of(pieces, tensor.detach()).view(1, *tensor.shape)
            origin = {name: parameters[name] for name in made_of[key]}
            for name, rows in pull_rows(tensor, row, origin).items():
                collection.pieces[name].append(Rows(rows))


def _common_views(
    collected: Sequence[Collection], parameters: Mapping[str, nn.Parameter]
) -> set[str]:
    """Find the derived tensors that are views, of which no two overlap, in all passes alike."""
    if any(_outline(collection.calls) != _outline(collected[0].calls) for collection in collected):
        return set()
    made_of = origins(collected[0].calls)
    used = {key for collection in collected for key in collection.pieces}
    views = used & set(made_of)
    for name in {name for names in made_of.values() for name in names}:
        keys = [key for key in used if name in made_of.get(key, ())]
        own = [parameters[name]] if name in used else []
        first = [collected[0].derived[key] for key in keys]
        for collection in collected:
            parts = [collection.derived[key] for key in keys]
            if not are_parts(parameters[name], [*own, *parts]) or not _same_parts(parts, first):
                views -= set(keys)
    return views


def _same_parts(parts: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    """Tell whether views show the same places of a parameter."""
    return all(
        (a.shape, a.stride(), a.storage_offset()) == (b.shape, b.stride(), b.storage_offset())
        for a, b in zip(parts, others, strict=True)
    )


def _outline(calls: tuple[Planned, ...]) -> list[tuple[str, tuple[str | None, ...]]]:
    """Give what two plans must share for their derived tensors to go by the same names."""
    return [(call.name, call.keys) for call in calls]


def _versions(piece: Piece) -> list[int]:
    """Tell how often a piece's factors were written to."""
    tensors = [value for value in vars(piece).values() if isinstance(value, Tensor)]
    return [tensor._version for tensor in tensors if not tensor.is_inference()]
