from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.task_server import TINY, tiny_generate
from threedgen import config
from threedgen.config.sections import MultiviewCameraConfig
from threedgen.geometry.rigs import sample_multiview
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.representations import losses
from threedgen.representations.field.background import NeuralBackground
from threedgen.representations.field.ngp import NGP
from threedgen.representations.march import Samples
from threedgen.representations.options import NGPConfig
from threedgen.representations.shading import DiffuseMaterial, Shading
from threedgen.representations.volume import two_pass as module
from threedgen.representations.volume.options import MarchConfig, OccupancyConfig
from threedgen.representations.volume.render import OccupancyGrid, Render, render
from threedgen.representations.volume.two_pass import two_pass
from threedgen.run.seeding import generator
from threedgen.systems.generate.sections import SystemConfig
from threedgen.systems.generate.system import GenerateSystem


def test_two_pass_halves_parts_that_do_not_fit_and_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    module._warn_halved.cache_clear()
    x, weight, limit = torch.arange(30.0).view(10, 3), nn.Parameter(torch.tensor([1.0, -2.0, 0.5])), 2

    def limited(part: slice) -> tuple[Tensor]:
        if torch.is_grad_enabled() and part.stop - part.start > limit:
            raise torch.OutOfMemoryError("out of memory")
        return ((x[part] @ weight).square(),)

    def gradient() -> Tensor:
        (squares,) = two_pass(limited, [slice(0, 3), slice(3, 10)], [weight])
        return torch.autograd.grad(squares.sum(), weight)[0]

    torch.testing.assert_close(gradient(), 2 * x.T @ (x @ weight.detach()))
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "march.chunk" in caplog.text
    limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        gradient()


def equal(one: Samples, other: Samples) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in vars(one))


RIG = sample_multiview(MultiviewCameraConfig(n_view=2), torch.Generator().manual_seed(3), 0, height=9, width=9)


def scene(backend: str, thresholds: bool) -> tuple[NGP, NeuralBackground, Callable[..., Render]]:
    rng = torch.Generator().manual_seed(0)
    encoding = {"n_levels": 4, "log2_hashmap_size": 9, "base_resolution": 4, "backend": backend}
    field = NGP(NGPConfig(encoding=encoding, width=16, density_blob_scale=30.0), rng)
    with torch.no_grad():
        field.encoding.table.uniform_(-1, 1, generator=rng)
    background = NeuralBackground(generator=rng)
    occupancy = OccupancyGrid(OccupancyConfig(resolution=8), 1.0, 0.1)
    occupancy.update(field.density, 0, torch.Generator().manual_seed(1))
    rays = [part.reshape(-1, 3) for part in RIG.cameras.rays()]
    limits = {"alpha_threshold": 0.01, "early_stop": 1e-4} if thresholds else {}
    options = MarchConfig(samples=40, backend=backend, **limits)

    def render_chunked(chunk: int | None, shading: Shading) -> Render:
        light, rng = torch.tensor([2.0, 1.0, 2.0]), generator(0, 0, "render")
        parts, modes = (field, background, DiffuseMaterial(), occupancy, options), {"training": True, "chunk": chunk}
        return render(*parts, *rays, light=light, generator=rng, need_normals=True, shading=shading, **modes)

    return field, background, render_chunked


def loss_of(result: Render) -> Tensor:
    """Return a weighted sum of all outputs of a render and its regularisers."""
    assert result.normal is not None and result.orientation is not None
    weights = torch.linspace(-1, 1, result.rgb.numel()).view(result.rgb.shape)
    total = (result.rgb * weights).sum() + (result.normal * weights).sum() + (result.depth * weights[:, :1]).sum()
    total = total + 10 * losses.orientation(result) + losses.sparsity(result)
    return total + losses.opaque(result) + result.z_variance.mean()


def gradients(*modules: nn.Module) -> list[Tensor | None]:
    grads = [p.grad for m in modules for p in m.parameters()]
    for m in modules:
        m.zero_grad(set_to_none=True)
    return grads


def assert_close(actual: list[Tensor | None], expected: list[Tensor | None]) -> None:
    """Compare gradients by norm, of each parameter and in total; None only where expected."""
    assert [a is None for a in actual] == [b is None for b in expected]
    pairs = [(a, b) for a, b in zip(actual, expected, strict=True) if a is not None and b is not None]
    for a, b in pairs:
        assert float((a - b).norm()) <= 1e-5 * float(b.norm())
    first, second = (torch.cat([t.flatten() for t in side]) for side in zip(*pairs, strict=True))
    assert float((first - second).norm()) <= 1e-5 * float(second.norm())


SHADINGS = [Shading("diffuse", 0.3, 0.7), Shading("textureless", 0.3, 0.7), Shading()]


@pytest.mark.parametrize(
    ("backend", "thresholds", "shading"),
    [
        ("numba", False, SHADINGS[0]),
        ("numba", True, SHADINGS[1]),
        ("numba", True, SHADINGS[2]),
        ("torch", True, SHADINGS[0]),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_chunks_give_the_same_gradient(backend: str, thresholds: bool, shading: Shading) -> None:
    """Lit colours and the orientation loss need second derivatives of the field."""
    field, background, render_chunked = scene(backend, thresholds)
    whole = render_chunked(None, shading)
    loss = loss_of(whole)
    loss.backward()
    grads = gradients(field, background)
    named = dict(zip((name for name, _ in field.named_parameters()), grads, strict=False))
    assert named["encoding.table"] is not None and float(named["encoding.table"].norm()) > 0
    assert (named["feature_mlp.layers.0.weight"] is None) == (shading.mode == "textureless")
    for chunk in (1, 300, 10**6):
        result = render_chunked(chunk, shading)
        assert (result.weights is None) == (chunk < 10**6) and result.samples.n_rays == len(whole.rgb)
        for name in ("rgb", "rgb_fg", "opacity", "depth", "z_variance", "normal", "orientation", "background"):
            torch.testing.assert_close(getattr(result, name), getattr(whole, name))
        assert equal(result.samples, whole.samples)
        again = loss_of(result)
        assert again.item() == pytest.approx(loss.item(), rel=1e-5)
        again.backward()
        assert_close(gradients(field, background), grads)


def build_system(folder: Path, **march: Any) -> GenerateSystem:
    """Return a tiny system with normals and lighting."""
    values = {
        "material": {"name": "diffuse", "ambient_only_steps": 0, "diffuse_probability": 1.0},
        "march": TINY["march"] | march,
    }
    c = config.load(tiny_generate(folder, **values))
    prior = MVDream.load(c.prior.weights, dtype="fp32")
    views = torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    cameras = sample_multiview(c.camera, torch.Generator().manual_seed(0), 0).cameras
    system = GenerateSystem(c, prior, prior.encode_prompt(["a red dog", ""]), views, cameras)
    return system.train()


@pytest.mark.parametrize(
    ("weight", "name", "needed"),
    [
        (0.1, "generate", True),
        ({0: 0.0, 10: 0.1}, "generate", True),
        (0.0, "generate", False),
        (0.0, "own-training-step", True),
    ],
)
def test_training_render_has_a_depth_variance_only_if_a_loss_may_use_it(
    tmp_path: Path, weight: Any, name: str, needed: bool
) -> None:
    system = build_system(tmp_path)
    loss = system.config.loss.model_copy(update={"z_variance": weight})
    system.config = system.config.model_copy(update={"loss": loss, "system": SystemConfig(name=name)})
    cameras = system.training_rig(0).cameras
    variances = [system.render(cameras, 0, training=training).z_variance for training in (True, False)]
    assert [bool(variance.any()) for variance in variances] == [needed, True]


def test_auto_chunk_and_scheduled_values_are_restored_from_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, checkpoint, prepared = build_system(tmp_path, chunk="auto"), {"global_step": 7}, []
    chunk = system.chunk(normals=True)
    assert chunk is not None and chunk & (chunk - 1) == 0
    system.on_save_checkpoint(checkpoint)
    monkeypatch.setattr("threedgen.systems.generate.scene.free_bytes", lambda device: 1 << 20)
    resumed = build_system(tmp_path, chunk="auto")
    monkeypatch.setattr(type(resumed.field), "before_step", lambda field, *steps: prepared.append(steps))
    resumed.on_load_checkpoint(checkpoint)
    assert resumed.chunk(normals=True) == chunk and prepared == [(6, resumed.max_steps)]
    for value, expected_chunk in (("auto", 1024), (77, 77), (None, None)):
        assert build_system(tmp_path, chunk=value).chunk(normals=True) == expected_chunk
