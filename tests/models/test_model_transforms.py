"""Every network under hooks, torch.func, torch.compile and other precisions."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from gafscope.models import cnn, gpt, mlp, resnet18, vit

# Narrow networks without BatchNorm, whose samples do not touch each other.
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: mlp(192, hidden=(6,), num_classes=5),
    "mlp-layer": lambda: mlp(192, hidden=(6,), num_classes=5, norm="layer"),
    "cnn": lambda: cnn(3, 5, width=4),
    "cnn-group": lambda: cnn(3, 5, width=4, norm="group"),
    "resnet": lambda: resnet18(5, norm="group", width=4),
    "resnet-pre": lambda: resnet18(5, norm="group", width=4, pre_activation=True),
    "vit": lambda: vit(5, image_size=8, patch_size=4, dim=8, depth=2, heads=2),
    "gpt": lambda: gpt(5, context=8, dim=8, depth=2, heads=2),
    "gpt-untied": lambda: gpt(5, context=8, dim=8, depth=2, heads=2, tie_weights=False),
}

every_network = pytest.mark.parametrize("name", NETWORKS)


def make(name: str) -> nn.Module:
    return NETWORKS[name]()


def inputs(name: str, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if name.startswith("gpt"):
        return torch.randint(5, (n, 6), generator=generator)
    return torch.randn(n, 3, 8, 8, generator=generator).to(dtype)


def loss(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1)[..., 0].mean()


@every_network
def test_vmap_of_grad_gives_each_samples_gradient(name):
    model = make(name).double()
    batch = inputs(name, 3, torch.float64)
    weights = {key: p.detach() for key, p in model.named_parameters()}

    def sample_loss(weights: dict[str, Tensor], sample: Tensor) -> Tensor:
        return loss(functional_call(model, weights, (sample[None],)))

    # The fused kernels of scaled_dot_product_attention have no batching rule.
    with sdpa_kernel(SDPBackend.MATH):
        rows = vmap(grad(sample_loss), in_dims=(None, 0))(weights, batch)
    for i in range(3):
        wanted = torch.autograd.grad(loss(model(batch[i : i + 1])), list(model.parameters()))
        for key, expected in zip(weights, wanted, strict=True):
            torch.testing.assert_close(rows[key][i], expected)


@every_network
def test_hooks_on_each_parameters_module_see_every_sample_and_its_gradient(name):
    model = make(name)
    owners = {module for module in model.modules() if list(module.parameters(recurse=False))}
    outputs, gradients = {}, {}

    def note(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        outputs[module] = len(output)
        output.register_hook(lambda gradient: gradients.update({module: len(gradient)}))

    for module in owners:
        module.register_forward_hook(note)
    loss(model(inputs(name, 3))).backward()
    assert outputs == gradients == dict.fromkeys(owners, 3)


@every_network
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 3])
def test_precisions_and_batch_sizes(name, dtype, n):
    model = make(name).to(dtype)
    logits = model(inputs(name, n, dtype))
    assert logits.shape[0] == n
    assert logits.dtype == dtype
    loss(logits).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@every_network
def test_precisions_agree(name):
    model = make(name)
    batch = inputs(name, 2)
    single = model(batch)
    double = model.double()(inputs(name, 2, torch.float64))
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-4)


@every_network
def test_a_forward_and_a_backward_pass_leave_the_model_as_it_was(name):
    model = make(name)
    before = copy.deepcopy(model.state_dict())
    loss(model(inputs(name, 2))).backward()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


@every_network
def test_the_whole_network_compiles_into_one_graph(name):
    model = make(name)
    batch = inputs(name, 2)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(batch), model(batch))
