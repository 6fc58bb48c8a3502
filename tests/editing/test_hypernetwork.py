from __future__ import annotations

import pytest
import torch
from torch import Tensor

from malmen_cli.editing.hypernetwork import Block, HyperNetwork

D_IN, D_OUT, WIDTH = 5, 3, 8


def network(layers: int = 2, blocks: int = 2, *, trained: bool = False) -> HyperNetwork:
    """In float64; `trained`: with noise on every parameter."""
    generator = torch.Generator().manual_seed(0)
    net = HyperNetwork(D_IN, D_OUT, layers=layers, rank=4, blocks=blocks, generator=generator).double()
    if trained:
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return net


def rows(n: int = 11) -> Tensor:
    return torch.randn(n, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def output(net: HyperNetwork, x: Tensor, layer: int) -> Tensor:
    return torch.cat(net(x, layer), dim=1)


def written_out(net: HyperNetwork, x: Tensor, layer: int) -> Tensor:
    """x <- x + s_l * relu(x A B + b) + t_l, block by block."""
    for i in range(len(net.blocks)):
        p = {name: net.get_parameter(f"blocks.{i}.{name}") for name in ("A", "B", "bias", "scale", "shift")}
        x = x + p["scale"][layer] * torch.relu(x @ (p["A"] @ p["B"]) + p["bias"]) + p["shift"][layer]
    return x


def test_it_starts_as_the_identity() -> None:
    x = rows()
    for layer in range(2):
        pseudo_keys, pseudo_value_grads = network()(x, layer)
        assert torch.equal(pseudo_keys, x[:, :D_IN]) and torch.equal(pseudo_value_grads, x[:, D_IN:])


@pytest.mark.parametrize("layer", [0, 1])
def test_it_is_the_formula(layer: int) -> None:
    net = network(trained=True)
    torch.testing.assert_close(output(net, rows(), layer), written_out(net, rows(), layer), rtol=1e-12, atol=1e-12)
    for n in (1, 0):
        assert output(net, rows(n), layer).shape == (n, WIDTH)


def test_rows_do_not_see_each_other() -> None:
    net, x = network(trained=True), rows()
    alone = torch.cat([output(net, row[None], 1) for row in x])
    torch.testing.assert_close(output(net, x, 1), alone, rtol=1e-12, atol=1e-12)


def test_b_learns_from_the_first_step_and_a_from_the_second() -> None:
    """relu's gradient at 0 is 0: with it, B = 0 would never move."""
    net, x = network(), rows()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)

    def step() -> dict[str, float]:
        optimiser.zero_grad()
        output(net, x, 0).pow(3).sum().backward()
        norms = {name: float(p.grad.norm()) for name, p in net.named_parameters() if p.grad is not None}
        optimiser.step()
        return norms

    first = step()
    assert all(first[f"blocks.{i}.{name}"] > 0 for i in range(2) for name in ("B", "bias", "shift"))
    second = step()
    assert all(norm > 0 for norm in second.values()) and len(second) == 10


def test_layers_share_a_b_and_bias_and_own_scale_and_shift() -> None:
    net, x = network(trained=True), rows()
    assert net.get_parameter("blocks.0.scale").shape == (2, WIDTH)
    output(net, x, 1).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        own = name.endswith(("scale", "shift"))
        if own:
            assert not parameter.grad[0].any() and bool(parameter.grad[1].any())
        else:
            assert bool(parameter.grad.any())
    assert not torch.allclose(output(net, x, 0), output(net, x, 1))


def test_the_start_is_a_function_of_the_seed() -> None:
    def a(seed: int) -> Tensor:
        return Block(WIDTH, 4, 1, torch.Generator().manual_seed(seed)).A

    assert torch.equal(a(3), a(3)) and not torch.equal(a(3), a(4))
    assert abs(float(Block(400, 50, 1, torch.Generator().manual_seed(0)).A.detach().std()) - 1) < 0.02
