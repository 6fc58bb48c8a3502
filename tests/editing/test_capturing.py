from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from malmen_cli.editing.capture import capturing


def model() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return net.requires_grad_(False)


def texts() -> Tensor:
    return torch.randn(2, 7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_keys_and_value_gradients_are_plain_autograds() -> None:
    net, x = model(), texts()
    with capturing([net[2], net[4]]) as capture:
        loss = net(x).square().sum()
    grads = capture.value_grads(loss)

    key = net[1](net[0](x))
    leaf = net[2](key).requires_grad_()
    middle = net[3](leaf)
    output = net[4](middle)
    wanted = torch.autograd.grad(output.square().sum(), [leaf, output])
    torch.testing.assert_close(capture.keys, [key, middle.detach()], rtol=0, atol=0)
    torch.testing.assert_close(grads, list(wanted), rtol=1e-14, atol=0)


def test_modules_may_be_named_in_any_order() -> None:
    net, x = model(), texts()
    with capturing([net[2], net[4]]) as forwards:
        grads = forwards.value_grads(net(x).square().sum())
    with capturing([net[4], net[2]]) as backwards:
        swapped = backwards.value_grads(net(x).square().sum())
    torch.testing.assert_close(backwards.keys[::-1], forwards.keys, rtol=0, atol=0)
    torch.testing.assert_close(swapped[::-1], grads, rtol=0, atol=0)


class InPlace(nn.Module):
    """Changes its layer's output in place, as some models do."""

    def __init__(self, layer: nn.Module, how: str) -> None:
        super().__init__()
        self.layer, self.how = layer, how

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = getattr(self.layer(x), self.how)(
            torch.arange(3, 8, dtype=torch.float64)[: self.layer.bias.numel()]
        )
        return changed


@pytest.mark.parametrize("how", ["add_", "mul_"])
@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_outputs_may_be_changed_in_place(how: str, kind: type[nn.Module]) -> None:
    net, x = model(), texts()
    if kind is Conv1D:  # its output is a view
        net[2], net[4] = Conv1D(5, 6).double(), Conv1D(3, 5).double()
        net.requires_grad_(False)
    layers = [net[2], net[4]]
    net[2], net[4] = (InPlace(layer, how) for layer in layers)
    with capturing(layers) as capture:
        grads = capture.value_grads(net(x).square().sum())
    assert all(not leaf.any() for leaf in capture.leaves)

    steps = [torch.zeros_like(layer(keys)).requires_grad_() for layer, keys in zip(layers, capture.keys, strict=True)]
    for layer, step in zip(layers, steps, strict=True):
        layer.register_forward_hook(lambda _, __, output, step=step: output + step)
    wanted = torch.autograd.grad(net(x).square().sum(), steps)
    torch.testing.assert_close(grads, list(wanted), rtol=1e-14, atol=0)


def test_no_weight_gets_a_gradient_and_nothing_below_is_differentiated() -> None:
    net, x = model(), texts()
    with capturing([net[2], net[4]]) as capture:
        capture.value_grads(net(x).sum())
    assert all(p.grad is None for p in net.parameters())
    assert capture.leaves[0].is_leaf and not any(keys.requires_grad for keys in capture.keys)


def test_calls_are_counted() -> None:
    net, x = model(), texts()
    with capturing([net[4], net[2]], gradients=False) as capture:
        net[4](net[3](net[2](net[1](net[0](x)))))
        net[4](torch.zeros(1, 5, dtype=torch.float64))
    assert capture.calls == [2, 1]


def test_without_gradients_only_keys_are_kept_and_no_graph_is_built() -> None:
    net, x = model(), texts()
    with capturing([net[2]], gradients=False) as capture:
        assert not net(x).requires_grad
    assert len(capture.keys) == 1 and not capture.leaves


def test_the_hooks_are_gone_afterwards_whatever_happens() -> None:
    net, x = model(), texts()
    with pytest.raises(RuntimeError, match="stop"), capturing([net[2], net[4]]) as capture:
        net(x)
        raise RuntimeError("stop")
    assert not net(x).requires_grad and len(capture.keys) == 2
