"""concat_tokens: torch.cat along the tokens, bit for bit."""

from __future__ import annotations

import pytest
import torch

from fusionbench_kernels import concat_tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("batch", "first", "second", "width"), [(1, 1, 1, 1), (2, 7, 5, 40), (3, 0, 9, 33), (2, 17, 0, 8), (1, 33, 3, 200)]
)
def test_it_is_cat_bit_for_bit(
    batch: int, first: int, second: int, width: int, dtype: torch.dtype, device: str
) -> None:
    a, b = torch.randn(batch, first, width), torch.randn(batch, second, width)
    a, b = a.to(device, dtype), b.to(device, dtype)
    assert torch.equal(concat_tokens(a, b), torch.cat((a, b), dim=1))


def test_any_strides(device: str) -> None:
    a = torch.randn(24, 2, 5, device=device).permute(1, 2, 0)
    b = torch.randn(1, 3, 24, device=device).expand(2, 3, 24)
    assert torch.equal(concat_tokens(a, b), torch.cat((a, b), dim=1))


def test_gradients_are_the_slices(device: str) -> None:
    a, b = (
        torch.randn(2, 3, 8, device=device, requires_grad=True),
        torch.randn(2, 4, 8, device=device, requires_grad=True),
    )
    weight = torch.randn(2, 7, 8, device=device)
    (concat_tokens(a, b) * weight).sum().backward()
    assert torch.equal(a.grad, weight[:, :3])
    assert torch.equal(b.grad, weight[:, 3:])


def test_it_is_an_operator_that_compiles_and_exports() -> None:
    a, b = torch.randn(2, 3, 8), torch.randn(2, 4, 8)
    torch.library.opcheck(torch.ops.fusionbench_kernels.concat_tokens_forward, (a.requires_grad_(), b))
    compiled = torch.compile(concat_tokens, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(a, b), torch.cat((a, b), dim=1))


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"b has shape \[2, 3, 9\]; it must be \[2, any, 8\]"):
        concat_tokens(torch.randn(2, 3, 8), torch.randn(2, 3, 9))
