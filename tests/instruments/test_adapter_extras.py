"""Without the libraries: nothing is imported before it is used, and what is missing is named."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gafscope.errors import UserError
from gafscope.instruments import huggingface, lightning
from gafscope.instruments.loggers import MLflow, TensorBoard, WeightsAndBiases

MAKE = {
    "transformers": ("hf", huggingface.WatchCallback),
    "lightning.pytorch": ("lightning", lightning.WatchCallback),
    "torch.utils.tensorboard": ("tensorboard", lambda: TensorBoard("board")),
    "wandb": ("wandb", WeightsAndBiases),
    "mlflow": ("mlflow", MLflow),
}


@pytest.mark.parametrize("module", MAKE)
def test_a_missing_library_is_named_with_its_extra(module, monkeypatch):
    extra, make = MAKE[module]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"cannot be imported.*pip install 'gafscope\[{extra}\]'"):
        make()


def test_none_is_imported_by_gafscope_or_the_loggers():
    code = (
        "import sys, gafscope, gafscope.instruments.loggers, gafscope.instruments.accelerate; "
        "print([m for m in ('transformers', 'lightning', 'accelerate', 'tensorboard', 'wandb',"
        " 'mlflow') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
