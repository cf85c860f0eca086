"""Triton's kernels outside of the interpreter, in a process of their own.

python triton_check.py compile 80     to the machine code of a GPU of that compute capability; none is needed
python triton_check.py compare        run on the GPU, against the torch twins
"""

from __future__ import annotations

import sys

import torch

from threedgen.representations.hashgrid import torch_twin as grid_twin
from threedgen.representations.hashgrid import triton_kernels as grid
from threedgen.representations.hashgrid.encoding import encode
from threedgen.representations.march import march, pack, torch_twin, triton_kernels
from threedgen.representations.options import MarchConfig


def compile_all(capability: int) -> None:
    """Prints the kernels and the bytes of their machine code."""
    import triton
    from triton.backends.compiler import GPUTarget

    f, i, big = "*fp32", "*i32", "*i64"
    shape, wide, cells = {"F": 2, "PAIRS": 2}, {"C": 6, "WIDE": 8}, {"SIZE": 32}
    rays, marched = [big, big], [f] * 3 + ["*u8", i, "fp32", "fp32"]
    cases = [
        (grid._encode, [f, f, f, f, f, i, "i32"], shape | {"ALONG": False}),
        (grid._encode, [f, f, f, f, f, i, "i32"], shape | {"ALONG": True}),
        (grid._scatter, [f, f, f, f, f, i, "i32"], shape | {"ALONG": False}),
        (grid._scatter, [f, f, f, f, f, i, "i32"], {"F": 3, "PAIRS": 4, "ALONG": True}),
        (grid._position_gradient, [f, f, f, f, f, i, "i32", "i32"], shape),
        (triton_kernels._count, [*marched, big], cells),
        (triton_kernels._fill, [*marched, big, big, f, f], cells),
        (triton_kernels._fill, [*marched, big, big, f, f], {"SIZE": 0}),
        (triton_kernels._forward, [f] * 4 + rays + [f] * 3, wide),
        (triton_kernels._backward, [f] * 6 + rays + [f] * 4, wide),
        (triton_kernels._visible, [f] * 3 + rays + ["fp32", "fp32", "*u8"], {}),
    ]
    for kernel, types, constants in cases:
        given = iter(types)
        signature = {name: "constexpr" if name in constants else next(given) for name in kernel.arg_names}
        source = triton.compiler.ASTSource(kernel, signature, constants)
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        print(kernel.fn.__name__, len(made.asm["cubin"]))


def close(ours: torch.Tensor, theirs: torch.Tensor, name: str) -> None:
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    print(name, error)
    assert error < 1e-4, name


def compare(device: str, points: int = 5000) -> None:
    """Of the hash grid values, first and second derivatives; where samples are; of compositing values, gradients."""
    rng = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng).to(device)

    levels = grid_twin.grid_levels(16, 14, 16, 1.447269237440378)
    x, table = torch.rand(points, 3, generator=rng).to(device), draw(levels.entries, 2)
    grad, to_x, to_table = draw(points, 32), draw(points, 3), draw(levels.entries, 2)
    results = []
    for module in (grid, grid_twin):
        leaves = [t.clone().requires_grad_() for t in (x, table, grad)]
        features = encode(*leaves[:2], levels, module)
        first = torch.autograd.grad(features, leaves[:2], leaves[2], create_graph=True)
        loss = (first[0] * to_x).sum() + (first[1] * to_table).sum()
        results.append([features, *first, *torch.autograd.grad(loss, leaves[1:])])
    names = ("features", "d x", "d table", "d2 table", "d2 grad")
    for name, ours, theirs in zip(names, *results, strict=True):
        close(ours.detach(), theirs.detach(), name)

    origins = 2.5 * torch.nn.functional.normalize(draw(3000, 3), dim=-1)
    toward = torch.nn.functional.normalize(0.6 * draw(3000, 3) - origins, dim=-1)
    full, jitter = torch.rand(32, 32, 32, generator=rng).to(device) < 0.1, torch.rand(3000, generator=rng).to(device)
    for sampler, bound in (("occupancy", "box"), ("occupancy", "sphere"), ("stratified", "box")):
        placed = [
            march(origins, toward, MarchConfig(samples=512, sampler=sampler, bound=bound, backend=name), full, jitter)
            for name in ("triton", "torch")
        ]
        same = all(torch.equal(*(getattr(s, name) for s in placed)) for name in ("ray_index", "t_start", "t_end"))
        print("march", sampler, bound, len(placed[0]))
        assert same, f"march {sampler} {bound}"

    counts = torch.randint(0, 200, (300,), generator=rng)
    index = torch.repeat_interleave(torch.arange(300), counts)
    start = torch.rand(len(index), generator=rng)
    samples = pack(index.to(device), start.to(device), (start + 0.05).to(device), 300)
    sigma, values = draw(len(index)).abs(), draw(len(index), 6)
    given = draw(300, 6), draw(300, 1), draw(300, 1), draw(len(index))
    results = []
    for module in (triton_kernels, torch_twin):
        pair = [t.clone().requires_grad_() for t in (sigma, values)]
        out = module.composite(*pair, samples)
        results.append([*out, *torch.autograd.grad(out, pair, given)])
    for name, ours, theirs in zip(("rgb", "opacity", "depth", "weights", "d sigma", "d values"), *results, strict=True):
        close(ours.detach(), theirs.detach(), name)
    seen = [module.visible(sigma, samples, 0.02, 0.1) for module in (triton_kernels, torch_twin)]
    assert int((seen[0] != seen[1]).sum()) <= 2, "visible"  # ties may be rounded differently


if __name__ == "__main__":
    if sys.argv[1] == "compile":
        compile_all(int(sys.argv[2]))
    else:
        compare("cuda")
