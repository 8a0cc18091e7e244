"""Everything that one run from the command line can be told, with sensible defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final


@final
@dataclass(frozen=True)
class TrainSettings:
    """Train a model with gradient agreement filtering, and record every decision.

    The same settings again go on where the last run of them stopped.
    """

    data: str = "digits"
    """Data set: digits, cifar10, cifar100, cifar10n, cifar100n, white-noise, folder or text."""
    data_dir: str | None = None
    """Where the data set's files are; $GAFSCOPE_DATA when not given. For text a file, or a folder
    whose files are tasks of their own; texts installed with Python when not given."""
    data_options: dict[str, str] | None = None
    """Options of the data set, e.g. samples 1000 classes 10 shape 1,32,32 for white-noise, or
    context 64 size 100000 (bytes of a window, and of each text) for text."""
    download: bool = False
    """Download the data set if it is not there."""
    download_url: str | None = None
    """Another address to download from."""
    label_noise: float = 0.0
    """Share of training labels (of text: next bytes) that are moved to a different class, in
    [0, 1)."""
    subset: int | None = None
    """Use a class-balanced part of so many training images."""
    validation: float = 0.1
    """Share of the training images that is cut off for validation."""
    model: str = "mlp"
    """Network: mlp, cnn, resnet18, resnet34 or vit; gpt for text."""
    model_options: dict[str, str] | None = None
    """Options of the network, e.g. hidden 256,128 or stem imagenet norm group width 32."""
    rule: str = "gaf"
    """Rule: gaf, mean (plain averaging), calibrated-gaf, soft-gaf ...; a wrong name lists all."""
    tau: float | None = None
    """Largest accepted cosine distance, in [0, 2], of the rules that have one; 2 is plain
    averaging. The rule's own when not given: 0.97 for gaf."""
    rule_options: dict[str, str] | None = None
    """Options of the rule, e.g. anchor best for gaf, or false_accept 0.01 for calibrated-gaf."""
    microbatches: int | Literal["samples"] = 2
    """k, microbatches a step; samples decides on every single sample of a macrobatch."""
    microbatch_size: int = 20
    """u, samples a microbatch; with --microbatches samples the samples of a macrobatch."""
    balance: str = "iid"
    """Sampling: iid; exactly u / classes of each class by given or true labels; single, one given
    class a microbatch; similar, one group a microbatch of samples whose activations in a briefly
    trained network are similar; first-flipped or last-flipped, one microbatch of wrong labels
    alone. Text has tasks (the kinds of text, or files) in place of classes."""
    augment: bool = False
    """Random crops (padding 4) and flips."""
    steps: int = 1500
    """Macrobatches in all."""
    optimizer: str = "sgd"
    """Optimizer: sgd (Nesterov when there is momentum), heavy-ball (the same without Nesterov),
    adam, adamw or rmsprop; lamb or shampoo with the extra `optimizers`."""
    lr: float = 0.05
    """Learning rate."""
    momentum: float = 0.9
    """Momentum of sgd, heavy-ball, rmsprop and shampoo."""
    weight_decay: float = 0.0
    """Weight decay."""
    scheduler: str = "none"
    """Scheduler: none, or plateau (ReduceLROnPlateau on the validation accuracy)."""
    patience: int = 10
    """Validations without improvement after which plateau divides the learning rate by 10."""
    clip_norm: float | None = None
    """Clip the combined gradient to this norm."""
    precision: str = "fp32"
    """fp32, or bf16 for autocast."""
    compile: bool = False
    """Compile the model with torch.compile."""
    device_decision: bool = False
    """Where the rule allows it (GAF, averaging), decide without waiting for the device and mask the
    update instead of skipping it; faster on a GPU, where a step becomes a CUDA graph."""
    channels_last: bool = False
    """Lay images out channels last, which is faster for convolutions."""
    batch_norm: str = "accepted"
    """Which microbatches move BatchNorm's running statistics: accepted or all."""
    warmup_updates: int = 0
    """Average plainly for so many updates before the rule takes over."""
    max_updates: int | None = None
    """Control: end after so many updates."""
    yoked_to: str | None = None
    """Control: step exactly when the run in this folder stepped."""
    skip_rate: float | None = None
    """Control: skip this share of the updates at random."""
    on_stall: str = "warn"
    """After 200 rejections in a row: warn and go on, or stop."""
    validate_every: int = 100
    """Steps between validations."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    keep_checkpoints: int = 1
    """Newest checkpoints that are kept; an older one serves when a newer one is damaged."""
    record_layers_every: int = 100
    """Steps between Gramians by layer; 0 for never."""
    seed: int = 0
    """Seed of noise, validation split, weights, sampling and dropout."""
    sampling_seed: int | None = None
    """Another seed for the sampling alone, e.g. for a control on fresh microbatches."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto takes a GPU when there is one."""
    threads: int | None = None
    """Processor threads; torch's choice when not given. Small networks are fastest with 1."""
    rank_timeout: float = 600.0
    """Under torchrun: seconds that ranks wait for one that is stopped or slow, before all end."""
    run_dir: str | None = None
    """Folder of the run; runs/DATA-MODEL-RULE-seedSEED when not given."""
    progress: bool = True
    """Show a progress bar."""
