"""How the studies train, by preset: small, on a part of CIFAR-100, on all of it, as published."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gafscope.trainer import TrainSettings


def noisy_digits(**changes: Any) -> TrainSettings:
    """Give the settings of the small studies: digits, 40% of the training labels wrong.

    Args:
        changes: What a study does otherwise.
    """
    settings = TrainSettings(
        data="digits",
        label_noise=0.4,
        model="mlp",
        model_options={"hidden": "128"},
        tau=0.75,
        microbatch_size=20,
        steps=1500,
        lr=0.05,
        validate_every=50,
        threads=1,
    )
    return replace(settings, **changes)


def cifar_part(**changes: Any) -> TrainSettings:
    """Give the settings of the studies on a part of real CIFAR-100.

    The ImageNet-stem ResNet18 of the paper on 20,000 class-balanced images with 40% wrong labels,
    without augmentation, so that averaging memorises within the steps. At initialisation
    gradients agree so little that a strict threshold may never start, hence the warm-up.

    Args:
        changes: What a study does otherwise.
    """
    settings = TrainSettings(
        data="cifar100",
        subset=20_000,
        label_noise=0.4,
        model="resnet18",
        model_options={"stem": "imagenet"},
        channels_last=True,
        tau=0.98,
        microbatch_size=100,
        balance="given",
        steps=2000,
        lr=0.01,
        warmup_updates=100,
        validate_every=100,
        record_layers_every=0,
    )
    return replace(settings, **changes)


def all_of_cifar(**changes: Any) -> TrainSettings:
    """Give the settings of the studies on all of CIFAR-100, for one large GPU.

    Args:
        changes: What a study does otherwise.
    """
    return cifar_part(
        **{
            "subset": None,
            "steps": 20_000,
            "validate_every": 500,
            "device": "cuda",
            "device_decision": True,
        }
        | changes
    )


def as_published(**changes: Any) -> TrainSettings:
    """Give the paper's own settings (arXiv 2412.18052), which take days on a GPU.

    Microbatches hold one sample of each class by the true labels, as in the released code.

    Args:
        changes: What a study does otherwise.
    """
    settings = TrainSettings(
        data="cifar100",
        label_noise=0.4,
        model="resnet18",
        model_options={"stem": "imagenet"},
        channels_last=True,
        tau=0.97,
        microbatch_size=100,
        balance="true",
        augment=True,
        steps=500_000,
        lr=0.01,
        weight_decay=0.01,
        scheduler="plateau",
        patience=100,
        validate_every=500,
        checkpoint_every=5000,
        record_layers_every=1000,
    )
    return replace(settings, **changes)
