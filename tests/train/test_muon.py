"""Muon optimizer, alone and against torch.optim.Muon and AdamW."""

from copy import deepcopy

import pytest
import torch

from threedgen.train.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (24, 5)])
def test_orthogonalise_brings_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    matrix = (u * s.clamp(min=0.1 * float(s.max()))) @ v
    result = orthogonalise(matrix).float()
    values = torch.linalg.svdvals(result)
    assert 0.6 < values.min() and values.max() < 1.3 and result.shape == shape
    assert torch.allclose(result, u @ v, atol=0.35)  # the same singular vectors
    torch.testing.assert_close(orthogonalise(8 * matrix).float(), result)


def parameters() -> list[torch.Tensor]:
    """Return a matrix, a convolution, a vector and a matrix for AdamW."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(6, 4), (4, 3, 2, 2), (5,), (7, 3)]
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def descend(optimizer: Muon, weights: list[torch.Tensor], steps: int) -> float:
    for _ in range(steps):
        optimizer.zero_grad()
        loss = sum(((w - 0.5) ** 2).sum() for w in weights)
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def muon(weights: list[torch.Tensor], lr: float = 0.02) -> Muon:
    return Muon(weights, lr=lr, elementwise=weights[3:])


def test_muon_minimises_a_quadratic() -> None:
    weights = parameters()
    optimizer = muon(weights)
    first = descend(optimizer, weights, 1)
    descend(optimizer, weights, 800)
    for group in optimizer.param_groups:
        group["lr"] = 0.002
    assert descend(optimizer, weights, 200) < 0.01 * first


def test_muon_resumes_from_its_state() -> None:
    weights = parameters()
    optimizer = muon(weights)
    descend(optimizer, weights, 5)
    copies = [w.detach().clone().requires_grad_() for w in weights]
    again = muon(copies, lr=1.0)
    again.load_state_dict(deepcopy(optimizer.state_dict()))
    descend(optimizer, weights, 3)
    descend(again, copies, 3)
    assert all(torch.equal(a, b) for a, b in zip(weights, copies, strict=True))


def test_muon_equals_torch_muon_for_matrices_and_adamw_for_the_rest() -> None:
    weights, copies = parameters(), parameters()
    ours = Muon(weights, lr=0.01, weight_decay=0.1, elementwise=weights[3:])
    theirs = [
        torch.optim.Muon(copies[:1], lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(copies[2:], lr=0.01, weight_decay=0.1, betas=(0.9, 0.98)),
    ]
    generator = torch.Generator().manual_seed(2)
    for _ in range(4):
        for a, b in zip(weights, copies, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        ours.step()
        for optimizer in theirs:
            optimizer.step()
    assert torch.allclose(weights[0], copies[0], atol=1e-3)  # both iterate in bfloat16
    assert (weights[0] - parameters()[0]).abs().max() > 1e-2
    for k in (2, 3):
        assert torch.allclose(weights[k], copies[k], atol=1e-6)
    assert torch.equal(copies[1], parameters()[1]) and not torch.equal(weights[1], copies[1])  # the convolution
