"""The multi-layer perceptron, initialised as in He et al. 2015 (arXiv 1502.01852)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, final

from jaxtyping import Float
from torch import Tensor, nn

from gafscope.errors import unknown_name
from gafscope.models._parts import require_dropout, require_sizes


@final
class MLP(nn.Module):
    """Fully connected layers with ReLUs between them; made by `mlp`.

    Args:
        in_features: Numbers in one sample.
        hidden: Units of each hidden layer.
        num_classes: Number of logits.
        dropout: Dropout rate after each ReLU.
        norm: None, "batch" or "layer"; between each hidden layer and its ReLU.
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        num_classes: int,
        dropout: float,
        norm: str | None,
    ):
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        inputs = in_features
        for units in hidden:
            layers.append(nn.Linear(inputs, units))
            if norm is not None:
                layers.append(nn.BatchNorm1d(units) if norm == "batch" else nn.LayerNorm(units))
            layers.append(nn.ReLU())
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
            inputs = units
        layers.append(nn.Linear(inputs, num_classes))
        self.layers = nn.Sequential(*layers)
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, inputs: Float[Tensor, "n ..."]) -> Float[Tensor, "n classes"]:
        """Classify a batch.

        Args:
            inputs: (n, ...), flattened from dimension 1 to `in_features` numbers.

        Returns:
            Logits, (n, num_classes).
        """
        return self.layers(inputs)


def mlp(
    in_features: int,
    hidden: int | Sequence[int] = (128,),
    num_classes: int = 10,
    *,
    dropout: float = 0.0,
    norm: Literal["batch", "layer"] | None = None,
) -> MLP:
    """Make a multi-layer perceptron: Linear, norm, ReLU and dropout for each hidden layer.

    Weights are drawn from N(0, 2 / fan_in) and biases are 0 (He et al. 2015, arXiv 1502.01852).

    Args:
        in_features: Numbers in one sample; inputs of shape (n, ...) are flattened.
        hidden: Units of each hidden layer; empty for a linear classifier. One number is one
            hidden layer.
        num_classes: Number of logits.
        dropout: Dropout rate after each ReLU, in [0, 1).
        norm: None, "batch" (BatchNorm, which needs two samples in training mode) or "layer".

    Returns:
        The network, which maps (n, ...) to (n, num_classes).

    Raises:
        UserError: If a size is not positive, the dropout rate is out of range or the norm is
            unknown.

    Example:
        >>> import torch
        >>> mlp(64, hidden=(32, 16), num_classes=3)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 3])
    """
    hidden = (hidden,) if isinstance(hidden, int) else hidden
    require_sizes(in_features=in_features, num_classes=num_classes)
    require_sizes(**{f"hidden[{i}]": units for i, units in enumerate(hidden)})
    require_dropout(dropout)
    if norm not in (None, "batch", "layer"):
        raise unknown_name("norm", norm, ("batch", "layer"))
    return MLP(in_features, hidden, num_classes, dropout, norm)
