"""Linear maps by oneDNN's product: equal to torch's, values and gradients, and taken only where they should be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mgmae_cli.model import linear as module
from mgmae_cli.model.linear import Linear, _OneDnnLinear, linear

needs_onednn = pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="torch without oneDNN")


def values_and_gradients(function: Callable[..., Tensor], x: Tensor, *parameters: Tensor | None) -> list[Tensor]:
    """Return a linear map's values and its gradients for fixed random ones of the values."""
    leaves = [None if each is None else each.clone().requires_grad_() for each in (x, *parameters)]
    got = function(*leaves)
    got.backward(torch.randn(got.shape, generator=torch.Generator().manual_seed(1)))
    return [got.detach(), *(leaf.grad for leaf in leaves if leaf is not None and leaf.grad is not None)]


@needs_onednn
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda x: x, id="whole"),
        pytest.param(lambda x: x[:, -5:], id="last tokens"),
        pytest.param(lambda x: x.transpose(0, 1), id="transposed"),
        pytest.param(lambda x: x[0], id="one clip"),
        pytest.param(lambda x: x[:1].expand(4, -1, -1), id="expanded"),
    ],
)
def test_values_and_gradients_are_those_of_torch(view: Callable[[Tensor], Tensor], with_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, 9, 32, generator=generator), torch.randn(48, 32, generator=generator)
    bias = torch.randn(48, generator=generator) if with_bias else None
    wanted = values_and_gradients(lambda x, *rest: F.linear(view(x), *rest), x, weight, bias)
    got = values_and_gradients(lambda x, *rest: _OneDnnLinear.apply(view(x), *rest), x, weight, bias)
    assert len(got) == len(wanted) == 3 + with_bias
    for mine, other in zip(got, wanted):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


@needs_onednn
def test_gradients_that_nobody_wants_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    products: list[tuple[int, ...]] = []
    product = module._product
    monkeypatch.setattr(module, "_product", lambda *args: products.append(tuple(args[0].shape)) or product(*args))
    x, weight = torch.randn(3, 9, 32), torch.randn(48, 32, requires_grad=True)
    _OneDnnLinear.apply(x, weight, None).sum().backward()
    assert len(products) == 2  # the values, and the weights' gradient
    assert x.grad is None
    assert weight.grad is not None


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Count oneDNN's calls on a machine that it is taken for."""
    found: list[str] = []

    def apply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        found.append("onednn")
        return F.linear(x, weight, bias)

    monkeypatch.setattr(module._OneDnnLinear, "apply", apply)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(module, "is_intel", lambda: False)
    return found


@needs_onednn
def test_onednn_is_taken_for_large_float32_products_only(calls: list[str]) -> None:
    layer = Linear(256, 256)
    x = torch.randn(100, 256)
    layer(x)
    assert calls == ["onednn"]
    layer(x[:10])
    linear(x.bfloat16(), layer.weight.bfloat16())
    linear(x.double(), layer.weight.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x)
    layer(x[:0])
    assert calls == ["onednn"]


@needs_onednn
def test_onednn_is_left_to_cpus_where_it_is_faster(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    linear(torch.randn(100, 256), torch.randn(256, 256))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(module, "is_intel", lambda: True)
    linear(torch.randn(100, 256), torch.randn(256, 256))
    assert calls == []
