"""Handwritten digits, 8 x 8 pixels, as scikit-learn ships them: small, and always at hand."""

from __future__ import annotations

import torch

from gafscope.data.assemble import Source
from gafscope.data.partition import stratified_holdout

_TEST_SHARE = 0.2
_TEST_SEED = 0


def read_digits() -> Source:
    """Read the 1,797 digits; a fixed fifth of them is the test set.

    Inputs are `(pixel / 16 - m) / s` with the mean m and the standard deviation s of all pixels
    outside the test set. Neither depends on a seed, nor does the test set.

    Returns:
        float32 inputs (n, 1, 8, 8) with labels 0..9.

    Source:
        Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI (1998).
    """
    # Here, because importing scikit-learn takes long and only this data set needs it.
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    inputs = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    labels = torch.tensor(digits, dtype=torch.int64)
    generator = torch.Generator().manual_seed(_TEST_SEED)
    kept, held = stratified_holdout(labels, _TEST_SHARE, generator)
    inputs = (inputs - inputs[kept].mean()) / inputs[kept].std()
    return Source(inputs[kept], labels[kept], inputs[held], labels[held], num_classes=10)
