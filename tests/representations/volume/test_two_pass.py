"""Renders in chunks: the same pictures, the same gradients, in less memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.support.task_server import TINY, tiny_generate
from threedgen import config
from threedgen.config.sections import MultiviewCameraConfig
from threedgen.geometry.rigs import sample_multiview
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.representations import losses
from threedgen.representations.field.background import NeuralBackground
from threedgen.representations.field.ngp import NGP
from threedgen.representations.march import Samples, join, pack
from threedgen.representations.options import MarchConfig, NGPConfig, OccupancyConfig
from threedgen.representations.shading import DiffuseMaterial, Shading
from threedgen.representations.volume import two_pass as module
from threedgen.representations.volume.occupancy import OccupancyGrid
from threedgen.representations.volume.render import Render, render, sample_bytes, samples_that_fit
from threedgen.representations.volume.two_pass import two_pass
from threedgen.run.memory import graph_bytes
from threedgen.run.seeding import generator
from threedgen.systems.generate.system import GenerateSystem

# ---------------------------------------------------------------- the mechanism


class Rows(nn.Module):
    """Rows x (R, 3) -> squares of a linear map, and None; remembers how it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Parameter(torch.tensor([[1.0, -2.0, 0.5]]))
        self.unused = nn.Parameter(torch.ones(2))
        self.x = torch.arange(30.0).view(10, 3) / 10
        self.asked: list[tuple[int, bool]] = []

    def look(self, part: slice) -> tuple[Tensor, None, Tensor]:
        self.asked.append((part.stop - part.start, torch.is_grad_enabled()))
        y = self.x[part] @ self.used.T
        return y * y, None, y.detach() + 0 * y

    def forward(self, parts: list[slice]) -> Tensor:
        squares, nothing, plain = two_pass(self.look, parts, self.parameters())
        assert nothing is None and squares is not None and plain is not None
        return (squares * torch.arange(10.0)[:, None]).sum() + plain.mean()


def cut(*edges: int) -> list[slice]:
    return [slice(first, last) for first, last in zip(edges, edges[1:], strict=False)]


def expected(rows: Rows) -> Tensor:
    """The gradient written out."""
    y = rows.x @ rows.used.detach().T
    return (2 * torch.arange(10.0)[:, None] * y * rows.x).sum(0, keepdim=True)


@pytest.mark.parametrize("edges", [(0, 10), (0, 3, 10), (0, 1, 2, 3, 9, 10), tuple(range(11))])
def test_values_and_gradients_do_not_depend_on_the_parts(edges: tuple[int, ...]) -> None:
    rows = Rows()
    loss = rows(cut(*edges))
    assert [grad for _, grad in rows.asked] == [False] * (len(edges) - 1)
    loss.backward()
    assert rows.asked[len(edges) - 1 :] == [(b - a, True) for a, b in zip(edges, edges[1:], strict=False)]
    torch.testing.assert_close(loss.detach(), Rows()(cut(0, 10)).detach())
    torch.testing.assert_close(rows.used.grad, expected(rows))
    assert rows.unused.grad is None, "as in one pass: optimisers pass over what took no part"


def test_no_graph_where_none_is_wanted() -> None:
    rows = Rows()
    with torch.no_grad():
        assert not rows(cut(0, 4, 10)).requires_grad
    rows.requires_grad_(False)
    assert not rows(cut(0, 4, 10)).requires_grad


def test_gradients_add_up() -> None:
    rows = Rows()
    rows(cut(0, 4, 10)).backward()
    rows(cut(0, 5, 10)).backward()
    torch.testing.assert_close(rows.used.grad, 2 * expected(rows))


def test_second_derivatives_are_refused_and_not_forgotten() -> None:
    rows = Rows()
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(rows(cut(0, 4, 10)), rows.used, create_graph=True)


def test_a_parameter_changed_between_the_passes_is_noticed() -> None:
    rows = Rows()
    loss = rows(cut(0, 4, 10))
    with torch.no_grad():
        rows.used.add_(1)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


def test_the_second_pass_computes_in_the_precision_of_the_first() -> None:
    weight = nn.Parameter(torch.rand(4, 4, generator=torch.Generator().manual_seed(0)))
    kinds = []

    def look(part: slice) -> tuple[Tensor]:
        out = torch.ones(10, 4)[part] @ weight
        kinds.append(out.dtype)
        return (out.float(),)

    with torch.autocast("cpu", torch.bfloat16):
        (out,) = two_pass(look, cut(0, 5, 10), [weight])
    assert out is not None
    out.sum().backward()
    assert kinds == [torch.bfloat16] * 4 and weight.grad is not None and weight.grad.dtype == torch.float32


def test_a_part_too_large_for_the_memory_is_halved(caplog: pytest.LogCaptureFixture) -> None:
    module._say_halved.cache_clear()
    rows = Rows()
    look = rows.look

    def limited(part: slice) -> Any:
        if torch.is_grad_enabled() and part.stop - part.start > 2:
            raise torch.OutOfMemoryError("out of memory")
        return look(part)

    rows.look = limited  # type: ignore[method-assign]
    rows(cut(0, 3, 10)).backward()
    torch.testing.assert_close(rows.used.grad, expected(rows))
    assert caplog.text.count("chunks of the render are halved") == 1 and "march.chunk" in caplog.text

    def never(part: slice) -> Any:
        if torch.is_grad_enabled():
            raise torch.OutOfMemoryError("out of memory")
        return look(part)

    rows.look = never  # type: ignore[method-assign]
    with pytest.raises(torch.OutOfMemoryError):
        rows(cut(0, 3, 10)).backward()


@pytest.fixture
def one_device(tmp_path: Path) -> Iterator[None]:
    """A group of one process: all that DDP checks, without a second process."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.usefixtures("one_device")
def test_ddp_gets_each_gradient_once() -> None:
    """A backward pass for each chunk would mark parameters ready twice, which DDP refuses."""
    rows = Rows()
    parallel = DistributedDataParallel(rows)
    for _ in range(2):
        rows.zero_grad()
        parallel(cut(0, 3, 7, 10)).backward()
        torch.testing.assert_close(rows.used.grad, expected(rows))


# ---------------------------------------------------------------- samples in parts


def packed(*counts: int) -> Samples:
    """Rays with so many samples; sample k of all starts at k."""
    index = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    start = torch.arange(float(len(index)))
    return pack(index, start, start + 1, len(counts))


def equal(one: Samples, other: Samples) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in vars(one))


@pytest.mark.parametrize(
    ("counts", "most", "edges"),
    [
        ((3, 3, 3), None, (0, 3)),
        ((3, 3, 3), 9, (0, 3)),
        ((3, 3, 3), 8, (0, 2, 3)),
        ((3, 3, 3), 1, (0, 1, 2, 3)),
        ((0, 5, 0, 0, 2, 0), 4, (0, 1, 2, 6)),
        ((9, 0, 0), 2, (0, 1, 3)),
        ((0, 0), 1, (0, 2)),
    ],
)
def test_rays_are_cut_by_samples_and_put_together_again(
    counts: tuple[int, ...], most: int | None, edges: tuple[int, ...]
) -> None:
    samples = packed(*counts)
    parts = samples.split(most)
    assert parts == cut(*edges)
    pieces = [samples.of_rays(part) for part in parts]
    for part, piece in zip(parts, pieces, strict=True):
        assert piece.count.tolist() == list(counts[part])
        assert torch.equal(piece.start, piece.count.cumsum(0) - piece.count)
        assert torch.equal(piece.ray_index.bincount(minlength=len(piece.count)), piece.count)
    assert equal(join(pieces), samples)


# ---------------------------------------------------------------- renders

RIG = sample_multiview(MultiviewCameraConfig(n_view=2), torch.Generator().manual_seed(3), 0, height=9, width=9)


def scene(backend: str, thin: bool, samples: int = 40) -> tuple[NGP, NeuralBackground, Callable[..., Render]]:
    draws = torch.Generator().manual_seed(0)
    encoding = {"n_levels": 4, "log2_hashmap_size": 9, "base_resolution": 4, "backend": backend}
    field = NGP(NGPConfig(encoding=encoding, width=16, density_blob_scale=30.0), draws)
    with torch.no_grad():
        field.encoding.table.uniform_(-1, 1, generator=draws)
    background = NeuralBackground(generator=draws)
    occupancy = OccupancyGrid(OccupancyConfig(resolution=8), 1.0, 0.1)
    occupancy.update(field.density, 0, torch.Generator().manual_seed(1))
    rays = [part.reshape(-1, 3) for part in RIG.cameras.rays()]
    thinning = {"alpha_threshold": 0.01, "early_stop": 1e-4} if thin else {}
    options = MarchConfig(samples=samples, backend=backend, **thinning)

    def look(chunk: int | None, shading: Shading) -> Render:
        return render(
            field,
            background,
            DiffuseMaterial(),
            occupancy,
            options,
            *rays,
            light=torch.tensor([2.0, 1.0, 2.0]),
            generator=generator(0, 0, "render"),
            training=True,
            need_normals=True,
            shading=shading,
            chunk=chunk,
        )

    return field, background, look


def loss_of(seen: Render) -> Tensor:
    """Every quantity of a render, with weights like those of pictures and regularisers."""
    assert seen.normal is not None and seen.away is not None
    picture = torch.linspace(-1, 1, seen.rgb.numel()).view(seen.rgb.shape)
    total = (seen.rgb * picture).sum() + (seen.normal * picture).sum() + (seen.depth * picture[:, :1]).sum()
    total = total + 10 * losses.orientation(seen.away, seen.opacity) + losses.sparsity(seen.opacity)
    return total + losses.opaque(seen.opacity) + losses.z_variance(seen.z_variance, seen.opacity, threshold=0.2)


def gradients(*modules: nn.Module) -> list[Tensor | None]:
    found = [p.grad for m in modules for p in m.parameters()]
    for m in modules:
        m.zero_grad(set_to_none=True)
    return found


def assert_close(some: list[Tensor | None], wanted: list[Tensor | None], each: float = 1e-5) -> None:
    """Equal to 1e-5 of the norm, and to `each` in every parameter; absent where absent."""
    assert [one is None for one in some] == [other is None for other in wanted]
    pairs = [(one, other) for one, other in zip(some, wanted, strict=True) if one is not None and other is not None]
    for one, other in pairs:
        assert float((one - other).norm()) <= each * float(other.norm())
    all_of_some, all_of_wanted = (torch.cat([t.flatten() for t in side]) for side in zip(*pairs, strict=True))
    assert float((all_of_some - all_of_wanted).norm()) <= 1e-5 * float(all_of_wanted.norm())


SHADINGS = [Shading("diffuse", 0.3, 0.7), Shading("textureless", 0.3, 0.7), Shading()]


@pytest.mark.parametrize(
    ("backend", "thin", "shading"),
    [*(("numba", thin, shading) for thin in (False, True) for shading in SHADINGS), ("torch", True, SHADINGS[0])],
    ids=lambda value: getattr(value, "mode", None),
)
def test_chunks_give_the_same_gradient(backend: str, thin: bool, shading: Shading) -> None:
    """Through lit colours and the orientation loss these are second derivatives of the field."""
    field, background, look = scene(backend, thin)
    whole = look(None, shading)
    loss = loss_of(whole)
    loss.backward()
    wanted = gradients(field, background)
    learnt = dict(zip((name for name, _ in field.named_parameters()), wanted, strict=False))
    assert learnt["encoding.table"] is not None and float(learnt["encoding.table"].norm()) > 0
    assert (learnt["feature_mlp.layers.0.weight"] is None) == (shading.mode == "textureless")
    for chunk in (1, 300, 10**6):
        seen = look(chunk, shading)
        assert (seen.weights is None) == (chunk < 10**6)
        for name in ("rgb", "opacity", "depth", "z_variance", "normal", "away", "background"):
            torch.testing.assert_close(getattr(seen, name), getattr(whole, name))
        assert equal(seen.samples, whole.samples)
        again = loss_of(seen)
        assert again.item() == pytest.approx(loss.item(), rel=1e-5)
        again.backward()
        assert_close(gradients(field, background), wanted)


def test_what_waits_for_the_backward_pass_does_not_grow_with_the_samples() -> None:
    def kept(samples: int, chunk: int | None) -> int:
        _, _, look = scene("numba", thin=False, samples=samples)
        return graph_bytes(lambda: look(chunk, Shading("diffuse", 0.3, 0.7)))

    assert kept(160, None) > 2 * kept(40, None)
    assert kept(160, 100) == kept(40, 100) < kept(40, None)


# ---------------------------------------------------------------- the system


def system(folder: Path, **march: Any) -> GenerateSystem:
    """A tiny run with everything on that a chunk could get wrong."""
    values = {
        "material": {"name": "diffuse", "ambient_only_steps": 0, "diffuse_probability": 1.0},
        # high guidance and much noise magnify the rounding of the picture, whatever the chunks
        "distillation": {"guidance_scale": 1.0, "min_step_percent": 0.1, "max_step_percent": 0.3},
        "loss": {"orientation": 10.0, "sparsity": 0.1, "opaque": 0.1, "z_variance": 0.1},
        "march": TINY["march"] | march,
    }
    checked = config.load(tiny_generate(folder, **values))
    prior = MVDream.load(checked.prior.weights, dtype="fp32")
    views = torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    cameras = sample_multiview(checked.camera, torch.Generator().manual_seed(0), 0).cameras
    made = GenerateSystem(checked, prior, prior.encode_prompt(["a red dog", ""]), views, cameras)
    return made.train()


def step_gradients(made: GenerateSystem, step: int) -> list[Tensor | None]:
    made.training_step(step, step).backward()
    return gradients(made)


@pytest.mark.parametrize("step", [0, 5, 13])
def test_a_whole_step_has_the_same_gradient(tmp_path: Path, step: int) -> None:
    """Step 0 fits sampled views, the others distil through the prior, with all regularisers."""
    whole = step_gradients(system(tmp_path, chunk=None), step)
    assert sum(gradient is not None for gradient in whole) > 2
    for chunk in (50, 400):
        assert_close(step_gradients(system(tmp_path, chunk=chunk), step), whole, each=1e-4)


def test_auto_is_remembered_by_a_resumed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, checkpoint = system(tmp_path, chunk="auto"), {}
    chosen = made.chunk(normals=True)
    assert chosen is not None and chosen & (chosen - 1) == 0
    made.on_save_checkpoint(checkpoint)
    monkeypatch.setattr("threedgen.systems.generate.system.free_bytes", lambda device: 1 << 20)
    resumed = system(tmp_path, chunk="auto")
    resumed.on_load_checkpoint(checkpoint)
    assert resumed.chunk(normals=True) == chosen
    assert system(tmp_path, chunk="auto").chunk(normals=True) == 1024
    assert system(tmp_path, chunk=77).chunk(normals=True) == 77 and system(tmp_path, chunk=None).chunk(True) is None


def test_what_a_sample_costs() -> None:
    small, wide = (NGP(NGPConfig(encoding={"n_levels": 2, "log2_hashmap_size": 6}, width=w)) for w in (8, 64))
    cost = [
        sample_bytes(f, NeuralBackground(), DiffuseMaterial(), MarchConfig(samples=64), n)
        for f, n in ((small, False), (wide, False), (wide, True))
    ]
    assert cost[0] < cost[1] < cost[2] < 1e5
    assert cost[1] - cost[0] >= 4 * 2 * (64 - 8), "the hidden activations of two networks are kept"


def test_samples_that_fit_is_a_quarter_of_the_memory_in_powers_of_two() -> None:
    assert samples_that_fit(1 << 30, 1024) == (1 << 30) // 4 // 2 // 1024
    assert samples_that_fit((1 << 31) - 1, 1024) == samples_that_fit(1 << 30, 1024)
    assert samples_that_fit(0, 1024) == 1024
