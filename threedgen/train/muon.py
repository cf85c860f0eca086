"""Muon optimizer (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) for matrices, AdamW for the rest.

Unlike torch.optim.Muon, it also treats convolution weights as matrices (output channels, input channels x kernel). Both
kinds of parameters are in one optimizer, so that they share the learning rate schedule and the saved state.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from threedgen.config.sections import BETAS
from threedgen.run.dtypes import compute_dtype

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic Newton-Schulz iteration; final singular values: 0.7 to 1.2
Group = dict[str, Any]  # parameter group of an optimizer
STEPS = 5  # number of Newton-Schulz iterations


class Muon(torch.optim.Optimizer):
    """Optimizer: Muon (orthogonalised momentum) for parameters with two or more dimensions, AdamW for all others.

    Parameters in `elementwise` are updated by AdamW whatever their shape. For Muon, a parameter with more than two
    dimensions is flattened to a matrix (rows = first dimension). All parameters have the same learning rate and weight
    decay: Muon's updates are multiplied by 0.2 sqrt(max(rows, columns)), so that their RMS is similar to that of
    AdamW's updates (arXiv 2502.16982). `betas` are those of AdamW, `momentum` is that of Muon (Nesterov).
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = BETAS,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        elementwise: Iterable[Tensor] = (),
    ) -> None:
        excluded, params = {id(p) for p in elementwise}, list(params)
        matrices = [p for p in params if p.ndim >= 2 and id(p) not in excluded]
        others = [p for p in params if p.ndim < 2 or id(p) in excluded]
        groups = [{"params": matrices, "matrices": True}, {"params": others, "matrices": False}]
        defaults = {"lr": lr, "betas": betas, "momentum": momentum, "weight_decay": weight_decay, "eps": 1e-8}
        super().__init__([g for g in groups if g["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    if group["weight_decay"]:
                        p.mul_(1 - group["lr"] * group["weight_decay"])
                    scale, update = (self._orthogonal if group["matrices"] else self._adam)(p, p.grad, group)
                    p.add_(update, alpha=-group["lr"] * scale)
        return loss

    def _orthogonal(self, p: Tensor, grad: Tensor, group: Group) -> tuple[float, Tensor]:
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        state["momentum"].lerp_(grad, 1 - group["momentum"])
        nesterov = grad.lerp(state["momentum"], group["momentum"])
        update = orthogonalise(nesterov.flatten(1))
        return 0.2 * max(update.shape) ** 0.5, update.reshape(p.shape)

    def _adam(self, p: Tensor, grad: Tensor, group: Group) -> tuple[float, Tensor]:
        state, (beta1, beta2) = self.state[p], group["betas"]
        if not state:
            state.update(step=torch.zeros(()), first=torch.zeros_like(p), second=torch.zeros_like(p))
        state["step"] += 1
        state["first"].lerp_(grad, 1 - beta1)
        state["second"].lerp_(grad.square(), 1 - beta2)
        n = float(state["step"])
        second = (state["second"] / (1 - beta2**n)).sqrt_() + group["eps"]
        return 1.0, state["first"] / (1 - beta1**n) / second


def orthogonalise(matrix: Tensor) -> Tensor:
    """Return the update of Muon for a momentum `matrix` (m, n): float32, same singular vectors, singular values near 1.

    The update has the shape (m, n), and singular values of about 0.7 to 1.2. It is computed by 5 Newton-Schulz
    iterations, without a singular value decomposition.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.mT if tall else matrix).float()
    x = (x / (x.norm() + 1e-7)).to(compute_dtype("auto", x.device)).contiguous()
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()
