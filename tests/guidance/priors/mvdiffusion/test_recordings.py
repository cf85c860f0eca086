from functools import partial
from math import pi, radians
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from tests.support.parity_files import parted, recorded
from threedgen.evaluation.metrics.overlap import overlap_ratio, panorama_overlap, warp_by_homography
from threedgen.geometry import panorama, warp
from threedgen.guidance.priors.mvdiffusion.caa import DepthBlock, PanoramaBlock, PositionalEncoding
from threedgen.guidance.priors.mvdiffusion.geometry import DepthGeometry, Geometry, PanoramaGeometry, Scenes
from threedgen.guidance.priors.mvdiffusion.unet import ImageEncoding
from threedgen.guidance.priors.mvdiffusion.weights import build_network

CPU = torch.device("cpu")


def panorama_correspondences(K: Tensor, R: Tensor, pairs: list[tuple[int, int]], height: int, width: int) -> Tensor:
    """Map the pixels of view i to view j for each of P pairs (i, j): (P, H, W, 2); K, R (F, 3, 3)."""
    start, end = (list(side) for side in zip(*pairs, strict=True))
    H = warp.homography(K[start].double(), R[start].double(), K[end].double(), R[end].double())
    return warp.apply_homography(H[:, None], warp.pixel_grid(height, width))[0]


read = partial(parted, prefix="w/")


def panoramas(rest: dict[str, Tensor], size: tuple[int, int]) -> Geometry:
    return Scenes([PanoramaGeometry(K, R, size) for K, R in zip(rest["K"], rest["R"], strict=True)])


def depths(rest: dict[str, Tensor]) -> Scenes:
    min_overlap = float(rest["overlap_filter"])
    scenes = zip(rest["depths"], rest["poses"], rest["K"], strict=True)
    return Scenes([DepthGeometry(depth, c2w, K, min_overlap) for depth, c2w, K in scenes])


@recorded("get_k_r")
def test_panorama_cameras_match_recording(path: Path) -> None:
    _, rest, _ = read(path)
    for name in [name for name in rest if name.startswith("args_")]:
        fov, yaw, pitch, height, width = rest[name].tolist()
        K = panorama.intrinsics(radians(fov), int(height), int(width))
        R = panorama.rotation(radians(yaw), radians(pitch))
        torch.testing.assert_close(K, rest[name.replace("args", "K")].double(), rtol=0, atol=1e-3)
        torch.testing.assert_close(R, rest[name.replace("args", "R")].double(), rtol=0, atol=1e-5)


def cameras(rest: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return intrinsics and rotations of V cameras, each (V, 3, 3), from the angles in a file's tensors."""
    fov, step, first, size = (rest[name].item() for name in ("fov", "rot", "init", "res"))
    R = torch.stack([panorama.rotation(radians(first + step * n)) for n in range(len(rest["K"]))])
    return panorama.intrinsics(radians(fov), size, size).expand_as(R), R


@recorded("pano_corr_small")
def test_panorama_correspondences_match_recording(path: Path) -> None:
    _, rest, _ = read(path)
    expected = rest["correspondences"].double()
    views, _, height, width, _ = expected.shape
    for K, R in (cameras(rest), (rest["K"], rest["R"])):
        pairs = [(i, j) for i in range(views) for j in range(views)]
        found = panorama_correspondences(K, R, pairs, height, width).unflatten(0, (views, views))
        near, error = expected.abs() < 1e4, (found - expected).abs()
        assert (error / expected.abs().clamp(min=1))[near].max() < 1e-3
        assert error[warp.inside(expected, height, width)].max() < 1e-3


@recorded("pano_corr_512")
def test_correspondences_at_512_pixels_match_recording(path: Path) -> None:
    _, rest, _ = read(path)
    (K, R), size, stride = cameras(rest), int(rest["res"]), int(rest["stride"])
    for name, step in (("corr_next", 1), ("corr_prev", -1)):
        pairs = [(i, (i + step) % len(K)) for i in range(len(K))]
        found = panorama_correspondences(K, R, pairs, size, size)[:, stride // 2 :: stride, stride // 2 :: stride]
        expected = rest[name].double()
        assert (found - expected).abs()[warp.inside(expected, size, size)].max() < 1e-2


@recorded("pos_embedding")
def test_positional_encoding_matches_recording(path: Path) -> None:
    _, rest, _ = read(path)
    for name in [name.removesuffix("_x") for name in rest if name.endswith("_x")]:
        x, bands, expected = rest[f"{name}_x"], rest[f"{name}_freq"], rest[f"{name}_pe"]
        encoding = PositionalEncoding(expected.shape[-1], x.shape[-1])
        torch.testing.assert_close(encoding.freq_bands.flatten(), bands, rtol=1e-5, atol=0)
        error = (encoding(x) - expected).abs().unflatten(-1, (-1, len(bands)))
        assert error[..., bands * x.abs().max() < 1e3].max() < 1e-5


@torch.no_grad()
@recorded("pano_caa_")
def test_panorama_attention_matches_recording(path: Path) -> None:
    weights, rest, _ = read(path)
    x, size = rest["x"], (int(rest["img_hw"][0]), int(rest["img_hw"][1]))
    (width, *map_size), bands = x.shape[1:], x.shape[1] // 4
    geometry = panoramas(rest, size)
    keys = geometry.keys(*map_size, CPU)
    if "view0_mask" in rest:
        there = rest["view0_mask"][0].bool()
        mask = keys[0].mask.transpose(1, 2).reshape(there.shape).bool()
        assert (mask == there).float().mean() > 0.999  # pixels on a border may be on either side
        relation = keys[0].relation.transpose(1, 2).reshape(rest["view0_rel_xy"][0].shape)
        torch.testing.assert_close(relation[mask & there], rest["view0_rel_xy"][0][mask & there], rtol=1e-4, atol=1e-4)
        found = warp.sample(x[keys[0].views], keys[0].places).permute(0, 3, 1, 2)
        expected = rest["view0_key_value"][0]  # read at positions with rounding errors of the reference
        torch.testing.assert_close(found.reshape(expected.shape), expected, rtol=0, atol=1e-3)
    block = PanoramaBlock(width)
    block.load_state_dict(weights)
    error = (block(x, keys, geometry.n_view) - rest["out"]).abs()
    # with more bands the reference itself turns rounding errors into noise
    tolerance, average = (1e-3, 1e-4) if bands <= 8 else (3e-2, 3e-3)
    assert bands > 16 or (error.max() < tolerance and error.mean() < average)


@torch.no_grad()
@recorded("depth_caa")
def test_depth_attention_matches_recording(path: Path) -> None:
    weights, rest, _ = read(path)
    x, geometry = rest["x"], depths(rest)
    keys = geometry.keys(*x.shape[-2:], CPU)
    for scene, expected, mask in zip(geometry.scenes, rest["correspondence"], rest["overlap_mask"], strict=True):
        assert isinstance(scene, DepthGeometry)
        stride = scene.depth.shape[1] // expected.shape[2]
        for i, j in np.ndindex(*expected.shape[:2]):
            at = (scene.K[i], scene.c2w[i], scene.K[j], scene.c2w[j])
            pixels, depth = warp.pixel_grid(*scene.depth.shape[1:]).flatten(0, 1), scene.depth[i].flatten()
            found = warp.reproject(pixels, depth, *at)[0].unflatten(0, scene.depth.shape[1:])
            errors = []
            for start in {0, stride // 2}:
                there = expected[i, j].double()
                error = (found[start::stride, start::stride] - there).abs()
                # the error from rounded depth grows with the squared distance from the image
                far = there.abs().amax(-1, keepdim=True)
                errors.append((error / (far / max(scene.depth.shape)).clamp(min=1) ** 2)[far[..., 0] < 1e4].max())
            assert min(errors) < 1e-3
            assert i == j or bool(mask[i, j]) == bool(scene.overlap[i, j] > float(rest["overlap_filter"]))
    if "v1_mask" in rest:
        assert keys[1].views.tolist() == rest["v1_neighbours"].tolist()
        shape = rest["v1_mask"][0].shape
        there = keys[1].mask.reshape(shape)
        assert torch.equal(there.bool(), rest["v1_mask"][0])
        difference = (keys[1].relation.reshape(shape) - rest["v1_depth_diff"][0, ..., 0]) * there
        assert difference.abs().max() < 1e-4
        found = warp.sample(x[keys[1].views], keys[1].places).reshape(rest["v1_key_value"][0].shape)
        expected = rest["v1_key_value"][0] * there[:, None]
        torch.testing.assert_close(found * there[:, None], expected, rtol=0, atol=1e-4)
    block = DepthBlock(x.shape[1])
    block.load_state_dict(weights)
    torch.testing.assert_close(block.attn1(x, keys, geometry.n_view), rest["out_attn"], rtol=0, atol=1e-4)
    torch.testing.assert_close(block(x, keys, geometry.n_view), rest["out_block"], rtol=0, atol=1e-4)


@torch.no_grad()
@recorded("image_encoding_block")
def test_image_encoding_matches_recording(path: Path) -> None:
    weights, rest, _ = read(path)
    width, channels = weights["conv1.weight"].shape[:2]
    block = ImageEncoding(channels, width, int(rest["stride"]))
    block.load_state_dict(weights)
    torch.testing.assert_close(block(rest["x"]), rest["out"], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "mv_base_model."])
@recorded("pano_mv_unet")
def test_panorama_network_matches_recording(path: Path, prefix: str) -> None:
    weights, rest, meta = read(path)
    weights = {prefix + name: tensor for name, tensor in weights.items()}
    network = build_network(weights, UNet2DConditionModel(**meta["unet"]))
    assert network.kind == "panorama" and not network.has_condition
    x, t, text = (rest[name].flatten(0, 1) for name in ("latents", "timestep", "prompt_embd"))
    out = network(x, t, text, panoramas(rest, (8 * x.shape[-2], 8 * x.shape[-1])))
    # more channels enlarge the rounding errors of the reference, see test_panorama_attention_matches_recording
    tolerance = 2e-3 if max(network.unet.config["block_out_channels"]) <= 32 else 3e-2
    torch.testing.assert_close(out, rest["out"].flatten(0, 1), rtol=0, atol=tolerance)
    if "out_single_view" in rest:
        one = [rest[name][:, 0] for name in ("latents", "timestep", "prompt_embd")]
        torch.testing.assert_close(network(*one), rest["out_single_view"].flatten(0, 1), rtol=0, atol=2e-3)


@torch.no_grad()
@recorded("depth_mv_unet")
def test_depth_network_matches_recording(path: Path) -> None:
    weights, rest, meta = read(path)
    network = build_network(weights, UNet2DConditionModel(**meta["unet"]))
    assert network.kind == "depth" and network.has_condition
    given = [rest[name].flatten(0, 1) for name in ("latents", "timestep", "prompt_embd")]
    geometry = depths(rest)
    torch.testing.assert_close(network(*given, geometry), rest["out"].flatten(0, 1), rtol=0, atol=1e-3)
    out = network(*given, geometry, rest["condition"].flatten(0, 1))
    torch.testing.assert_close(out, rest["out_conditioned"].flatten(0, 1), rtol=0, atol=1e-3)


@recorded("overlap_psnr")
def test_panorama_overlap_psnr_matches_recording(path: Path) -> None:
    _, rest, _ = read(path)
    K, R, found = rest["K"].double(), rest["R"].double(), {}
    for name, tolerance in (("gt", 2.0), ("gen", 0.05)):
        found[name] = panorama_overlap(rest[name].float() / 255, K, R)
        np.testing.assert_allclose(found[name], rest[f"{name}_pair_psnr"], rtol=0, atol=tolerance)
        assert np.mean(found[name]) == pytest.approx(float(rest[f"{name}_psnr"]), abs=tolerance)
    assert overlap_ratio(found["gen"], found["gt"]) == pytest.approx(float(rest["ratio"]), abs=0.02)
    image, mask = warp_by_homography(rest["gen"][1].float(), warp.homography(K, R[0], K, R[1]))
    expected = rest["mask_view1_in_view0"]
    assert (mask & expected).sum() / (mask | expected).sum() > 0.98
    error = (image - rest["gen_warp_view1_to_view0"])[mask & expected].abs()
    assert np.percentile(error, 99) < 2  # the reference reads at steps of 1/32 pixel


@recorded("pano_stitch")
def test_stitched_panorama_matches_recording(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rays_to_the_ends(height: int, width: int) -> Tensor:
        rows, columns = torch.linspace(-pi / 2, pi / 2, height).double(), torch.linspace(-pi, pi, width).double()
        down, turn = torch.meshgrid(rows, columns, indexing="ij")
        return torch.stack([down.cos() * turn.sin(), down.sin(), down.cos() * turn.cos()], -1)

    _, rest, _ = read(path)
    # the reference's image ends at the centres of its outermost pixels, and it reads half a pixel further
    sample = panorama.sample
    monkeypatch.setattr(panorama, "equirectangular_rays", rays_to_the_ends)
    monkeypatch.setattr(panorama, "sample", lambda image, pixels, *how: sample(image, pixels + 0.5, *how))
    views, expected = rest["views"].permute(0, 3, 1, 2).float(), rest["equirect"].permute(2, 0, 1)
    K, R = panorama.intrinsics(pi / 2, *views.shape[-2:]), panorama.ring(len(views))
    found, weights = panorama.stitch(views, K, R, *expected.shape[-2:])
    rim = torch.ones_like(views)
    rim[:, :, 2:-2] = 0  # beyond the upper border the reference reads pixels of the lower one
    rim = panorama.stitch(rim, K, R, *expected.shape[-2:])[0][0]
    error = (found - expected).abs()[:, (weights > 0.05) & (rim.abs() < 0.01)]
    assert np.percentile(error, 95) < 1.5
    assert ((weights == 0) == (expected == 255).all(0)).float().mean() > 0.97


@recorded("skybox_to_views")
def test_skybox_views_match_recording(path: Path) -> None:
    _, rest, _ = read(path)
    angles = torch.stack([rest["vx"], rest["vy"]], 1).double().deg2rad()
    np.testing.assert_allclose(angles, panorama.SKYBOX, rtol=1e-6)
    faces, size = rest["skybox"].permute(0, 3, 1, 2).float(), rest["views"].shape[1:3]
    R = torch.stack([panorama.rotation(radians(angle)) for angle in rest["degrees"].tolist()])
    found = panorama.skybox_views(faces, panorama.intrinsics(pi / 2, *size), R, *size)
    error = (found.permute(0, 2, 3, 1) - rest["views"]).abs()
    assert error.median() <= 1 and all(view.median() <= 1 for view in error)
