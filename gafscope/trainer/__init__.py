"""The training loop, its settings and checkpoints, and the evaluation of models."""

from gafscope.trainer.evaluate import evaluate
from gafscope.trainer.settings import TrainSettings
from gafscope.trainer.train import train
from gafscope.trainer.trainer import Trainer

__all__ = ["TrainSettings", "Trainer", "evaluate", "train"]
