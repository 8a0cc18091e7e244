"""Reference networks: short, plain, initialised as their papers say.

Every network takes batches of any size, has no in-place activations, and gives each parameter a
standard `torch.nn` module whose output keeps the samples apart. Hooks, `torch.func` and
`torch.compile` therefore work on all of them.
"""

from gafscope.models.cnn import CNN, cnn
from gafscope.models.gpt import GPT, gpt
from gafscope.models.mlp import MLP, mlp
from gafscope.models.registry import build_model, model_names
from gafscope.models.resnet import ResNet, resnet18, resnet34
from gafscope.models.vit import ViT, vit

__all__ = [
    "CNN",
    "GPT",
    "MLP",
    "ResNet",
    "ViT",
    "build_model",
    "cnn",
    "gpt",
    "mlp",
    "model_names",
    "resnet18",
    "resnet34",
    "vit",
]
