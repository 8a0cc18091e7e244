"""What the callbacks of other people's trainers share: the watch of their latest training."""

from __future__ import annotations

from gafscope.errors import UserError
from gafscope.instruments.scope import Scope


class ScopeHolder:
    """Holds the watch that began with the latest training.

    Subclasses set `_scope` when training begins, and name in `_BEGIN` the call that begins it.
    """

    _BEGIN: str
    _scope: Scope | None = None

    @property
    def scope(self) -> Scope:
        """The watch of the latest training.

        Raises:
            UserError: If no training has begun.
        """
        if self._scope is None:
            raise UserError(f"There is no scope before training begins; call {self._BEGIN} first.")
        return self._scope

    def stop(self) -> None:
        """Stop watching and put everything back; a second time it does nothing."""
        if self._scope is not None:
            self._scope.stop()
