"""Models from outside, built from small configurations: ghost = loop to 1e-9."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch.nn.functional as F
from ghost_cases import check, make, normal, tokens
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

WORDS, CLASSES = 23, 5
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}


def gpt2(attention: str) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=WORDS,
        n_positions=12,
        n_embd=16,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation=attention,
    )
    return transformers.GPT2LMHeadModel(config)


def bert(attention: str) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=WORDS,
        max_position_embeddings=12,
        num_labels=CLASSES,
        attn_implementation=attention,
        **SMALL,
        **NO_DROPOUT,
    )
    return transformers.BertForSequenceClassification(config)


def llama(tied: bool) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=WORDS,
        max_position_embeddings=12,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=0,
        **SMALL,
    )
    return transformers.LlamaForCausalLM(config)


def vit(attention: str) -> nn.Module:
    config = transformers.ViTConfig(
        image_size=8,
        patch_size=4,
        num_labels=CLASSES,
        attn_implementation=attention,
        **SMALL,
        **NO_DROPOUT,
    )
    return transformers.ViTForImageClassification(config)


def resnet() -> nn.Module:
    config = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 2],
        num_labels=CLASSES,
        layer_type="basic",
    )
    return transformers.ResNetForImageClassification(config).eval()


def of_tokens(model: Any, words: Tensor) -> Tensor:
    logits = model(input_ids=words[:, :-1]).logits
    return F.cross_entropy(logits.mT, words[:, 1:], reduction="none").mean(1)


def of_sequences(model: Any, batch: dict[str, Tensor]) -> Tensor:
    logits = model(input_ids=batch["words"], attention_mask=batch["mask"]).logits
    return F.cross_entropy(logits, batch["targets"], reduction="none")


def of_images(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(pixel_values=batch[0]).logits, batch[1], reduction="none")


def sequences(n: int) -> dict[str, Tensor]:
    mask = tokens(2, 7)(n)
    mask[:, :3] = 1
    return {"words": tokens(WORDS, 7)(n), "mask": mask, "targets": tokens(CLASSES)(n)}


def images(n: int) -> tuple[Tensor, Tensor]:
    return normal(3, 8, 8)(n), tokens(CLASSES)(n)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any], Callable[..., Tensor]]] = {
    "gpt-2": (lambda: gpt2("sdpa"), tokens(WORDS, 8), of_tokens),
    "gpt-2, attention by hand": (lambda: gpt2("eager"), tokens(WORDS, 8), of_tokens),
    "llama": (lambda: llama(False), tokens(WORDS, 8), of_tokens),
    "llama, tied": (lambda: llama(True), tokens(WORDS, 8), of_tokens),
    "bert": (lambda: bert("sdpa"), sequences, of_sequences),
    "bert, attention by hand": (lambda: bert("eager"), sequences, of_sequences),
    "vit": (lambda: vit("sdpa"), images, of_images),
    "vit, attention by hand": (lambda: vit("eager"), images, of_images),
    "resnet": (resnet, lambda n: (normal(3, 32, 32)(n), tokens(CLASSES)(n)), of_images),
}


@pytest.mark.parametrize("name", CASES)
def test_models_from_hugging_face(name):
    factory, batch, loss = CASES[name]
    check(make(factory), batch(4), loss, microbatches=(None, 2))
