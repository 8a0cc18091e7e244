"""Data sets, label noise and class-balanced microbatch samplers."""

from gafscope.data.augment import crop_and_flip
from gafscope.data.load import dataset_names, load_data
from gafscope.data.sampler import MicrobatchSampler
from gafscope.data.splits import Dataset, Split

__all__ = [
    "Dataset",
    "MicrobatchSampler",
    "Split",
    "crop_and_flip",
    "dataset_names",
    "load_data",
]
