"""Per-sample Gramians, and weighted updates, from one forward and one backward pass."""

from gafscope.gradients.ghost.check import Coupled
from gafscope.gradients.ghost.engine import Ghost, ghost
from gafscope.gradients.ghost.places import Unsupported
from gafscope.gradients.ghost.products import PRECISIONS, Products

__all__ = ["PRECISIONS", "Coupled", "Ghost", "Products", "Unsupported", "ghost"]
