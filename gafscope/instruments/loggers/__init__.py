"""Records of watched loops on the boards that other tools show.

`LogTo` is a listener; `TensorBoard`, `WeightsAndBiases` and `MLflow` are loggers that it writes
to, and so is any object with the three methods of `Logger`. Their libraries are imported when one
is made.
"""

from gafscope.instruments.loggers.log_to import LogTo
from gafscope.instruments.loggers.logger import Logger
from gafscope.instruments.loggers.mlflow import MLflow
from gafscope.instruments.loggers.tensorboard import TensorBoard
from gafscope.instruments.loggers.weights_and_biases import WeightsAndBiases

__all__ = ["LogTo", "Logger", "MLflow", "TensorBoard", "WeightsAndBiases"]
