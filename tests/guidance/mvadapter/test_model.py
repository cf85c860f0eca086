"""The prior around the network: what it is told, how it draws and judges, what it refuses."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from tests.support.tiny_mvadapter import TOYBOX, adapted_model, tiny_model, tiny_prior_config
from tests.support.tiny_prior import (
    coarse_prior,
    cpu,
    tiny_coarse,
    tiny_prior,
    tiny_text_encoder,
    tiny_unet,
    tiny_vae,
    word_tokenizer,
)
from threedgen.config import ConfigError
from threedgen.config.registry import build
from threedgen.geometry.rigs import orbit
from threedgen.guidance.choices import Shift
from threedgen.guidance.diffusion import Conditions
from threedgen.guidance.distillation.options import SDSConfig
from threedgen.guidance.distillation.sds import SDS
from threedgen.guidance.mvadapter.cameras import (
    GEOMETRY_VIEWS,
    RAY_VIEWS,
    geometry_maps,
    ray_maps,
    untrained,
    views,
)
from threedgen.guidance.mvadapter.form import Form
from threedgen.guidance.mvadapter.model import MVAdapter
from threedgen.guidance.options import MVAdapterConfig
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.guidance.schedule import Schedule
from threedgen.guidance.weights import components

PROMPT = "a red dog"
C2W = views(RAY_VIEWS[:3], 16, 16).c2w


@pytest.mark.parametrize("config", [{}, TOYBOX])
def test_text_and_picture_become_views(config: Any) -> None:
    model = adapted_model(**config)
    control, few = model.camera(C2W), {"steps": 2, "size": (16, 24)}
    text = model.draw(PROMPT, control, generator=cpu(), **few)
    assert text.shape == (3, 16, 24, 3)
    assert torch.equal(text, model.draw(PROMPT, control, generator=cpu(), **few))
    picture = torch.rand(24, 32, 3, generator=cpu(1))
    seen = model.draw(PROMPT, control, picture, generator=cpu(), **few)
    other = model.draw(PROMPT, control, 1 - picture, generator=cpu(), **few)
    assert min((seen - text).abs().max(), (seen - other).abs().max()) > 1e-4
    alone = model.draw(PROMPT, control, picture, generator=cpu(), guidance_scale=1.0, **few)  # one half of the batch
    assert alone.shape == text.shape and (alone - seen).abs().max() > 1e-4


def test_the_geometry_of_a_mesh_is_a_map() -> None:
    model = adapted_model(Form("rowcol", control="geometry"), ("mv",))
    at = views(GEOMETRY_VIEWS, 16, 16)
    origins, _ = at.rays()
    maps = geometry_maps(origins, torch.ones_like(origins), torch.ones(6, 16, 16))
    assert model.draw(PROMPT, maps, steps=1, generator=cpu()).shape == (6, 16, 16, 3)
    with pytest.raises(ConfigError, match="told the geometry of a mesh"):
        model.camera(at.c2w)
    with pytest.raises(ConfigError, match="not trained to look at a picture"):
        model.draw(PROMPT, maps, torch.rand(16, 16, 3), steps=1)


def test_an_adapter_in_perspective_is_told_its_lines_of_sight() -> None:
    model = adapted_model(Form(fov=40.0))
    at = views(RAY_VIEWS, 16, 24, model.fov)
    maps = model.camera(2 * at.c2w)  # from how far does not matter: it sees all of a thing
    assert maps.shape == (6, 6, model.image_size, model.image_size) and 0 <= maps.min() and maps.max() <= 1
    front, middle = 2 * ray_maps(at)[0] - 1, (slice(None), slice(7, 9), slice(11, 13))
    torch.testing.assert_close(front[middle].mean((1, 2))[:3], torch.tensor([0.0, 1.0, 0.0]), atol=0.01, rtol=0)
    assert front[0, 0, 0] < -0.1 < 0.1 < front[0, 0, -1]  # to the left and to the right of their front, which is -y
    assert front[3:, 8, 12].norm() < 0.1 < 0.5 < front[3:, 0, 0].norm()  # how far lines pass the middle
    few = {"steps": 1, "size": (16, 24)}
    drawn = [
        model.draw(PROMPT, told, generator=cpu(), **few) for told in (ray_maps(at), adapted_model().camera(at.c2w))
    ]
    assert drawn[0].shape == (6, 16, 24, 3) and (drawn[0] - drawn[1]).abs().max() > 1e-4


def test_one_picture_without_a_camera_is_the_base() -> None:
    base, model = tiny_model(), adapted_model()
    x, t, text = torch.randn(2, 4, 8, 8, generator=cpu()), torch.tensor([300, 700]), base.encode_prompt([PROMPT])
    with torch.no_grad():
        text = text.expand(2, -1, -1)
        expected = base.denoise(x, t, text, base.camera(C2W[:2]), 2)
        assert torch.equal(model.denoise(x, t, text), expected)
        assert (model.denoise(x, t, text, model.camera(C2W[:2]), 2) - expected).abs().max() > 1e-3


def test_it_is_a_prior_for_any_distillation() -> None:
    model = adapted_model()
    rig = orbit(4, 0.2, 2.0, 0.8, 16, 16)
    latents = torch.randn(4, 4, 8, 8, generator=cpu(), requires_grad=True)
    text = model.encode_prompt([PROMPT, ""]).split(1)
    given = Conditions(text, model.camera(rig.c2w), 4)
    loss, _ = SDS(SDSConfig(), model.schedule, 100)(latents, model.denoise, given, 0, cpu())
    loss.backward()
    assert latents.grad is not None and latents.grad.abs().sum() > 0
    assert model.sample(PROMPT, rig.c2w, steps=1, generator=cpu()).shape == (4, 16, 16, 3)


def test_guidance_may_be_towards_the_other_views_too() -> None:
    model = adapted_model()

    def drawn(guide_views: bool, guidance_scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Of ``draw`` and of ``sample``, of the text that is the negative one."""
        model.guide_views = guide_views
        how: Any = {"steps": 2, "guidance_scale": guidance_scale, "negative_prompt": "", "generator": cpu()}
        return model.draw("", model.camera(C2W), **how), model.sample("", C2W, **how)

    for ours, plain in zip(drawn(True, 1), drawn(False, 1), strict=True):
        torch.testing.assert_close(ours, plain)
    for strong, plain in zip(drawn(False, 3), drawn(False, 1), strict=True):
        torch.testing.assert_close(strong, plain, atol=1e-4, rtol=0)
    for strong, plain in zip(drawn(True, 3), drawn(True, 1), strict=True):
        assert (strong - plain).abs().max() > 1e-3


def test_a_picture_says_what_is_wanted() -> None:
    """As a prior with a picture of the thing, in every call and to both scales of guidance."""
    model, text, rng = adapted_model(), tiny_model().encode_prompt([PROMPT, ""]).split(1), np.random.default_rng(0)
    latents, few = torch.randn(3, 4, 8, 8, generator=cpu()), {"steps": 1, "guidance_scale": 3.0}
    assert model.reference(text[0]) is None
    cut = [rng.random((9, 12, 4), np.float32) for _ in range(2)]
    directions, drawn = [], []
    for picture, scale in ((cut[0], None), (cut[0], 1.0), (cut[1], None)):
        model.with_picture(picture, scale)
        given = Conditions(text, model.camera(C2W), 3, reference=model.reference(text[0]))
        z = latents.clone().requires_grad_()
        SDS(SDSConfig(), model.schedule, 100)(z, model.denoise, given, 0, cpu())[0].backward()
        directions.append(z.grad)
        drawn.append(model.sample(PROMPT, C2W, generator=cpu(), **few))
    for first, second in ((0, 1), (0, 2)):
        assert (directions[first] - directions[second]).abs().max() > 1e-5
        assert (drawn[first] - drawn[second]).abs().max() > 1e-5
    with pytest.raises(ConfigError, match="not trained to look at a picture"):
        adapted_model(branches=("mv",)).with_picture(cut[0])


def test_a_hole_is_painted_by_the_2d_model() -> None:
    model, base, picture = adapted_model(), tiny_model(), torch.rand(16, 24, 3, generator=cpu(1))
    hole = torch.zeros(16, 24, dtype=torch.bool)
    hole[3:9, 4:11] = True
    made = [m.with_network(m.adapted) if m.adapted else m for m in (model, base)]
    found, expected = (m.inpaint(PROMPT, picture, hole, steps=2, repeats=2, generator=cpu()) for m in made)
    assert torch.equal(found, expected)  # which knows its own noise, not the shifted one
    whole = base.inpaint(PROMPT, picture, torch.zeros_like(hole), steps=2, generator=cpu())
    again = base.decode_latents(base.encode_views(picture[None]))[0]
    torch.testing.assert_close(whole, again, atol=1e-4, rtol=0)  # nothing of it is drawn anew
    assert (found - whole)[hole].abs().max() > 0.01


def test_the_noise_is_shifted_once_and_kept(tmp_path: Path) -> None:
    model = adapted_model(Form(shift=6.0, shift_mode="default"))
    shifted = Schedule.scaled_linear().shifted(6.0, "default")
    assert torch.equal(model.with_network(model.adapted).schedule.betas, shifted.betas)
    components.scheduler(model.schedule).save_config(tmp_path / "scheduler")
    stored = components.read_schedule(tmp_path)
    torch.testing.assert_close(stored.alpha_bar, shifted.alpha_bar, rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="at least 1"):
        Schedule.scaled_linear().shifted(0.5)


@pytest.mark.parametrize("mode", get_args(Shift))
@torch.no_grad()
def test_a_matched_timestep_is_the_one_at_which_the_2d_model_knew_such_noise(mode: Shift) -> None:
    base = tiny_model()
    own = base.schedule
    model = adapted_model(Form(shift_mode=mode, timestep="matched"))
    assert torch.allclose(own.timesteps_in(own), torch.arange(own.T).float())
    known, t = model.schedule.timesteps_in(own), torch.tensor([3, 250, 600])
    assert bool((known >= torch.arange(own.T)).all()) and known.diff().min() >= 0 and known[-1] == own.T - 1
    around = torch.stack([own.alpha_bar[known[t].ceil().long()], own.alpha_bar[known[t].floor().long()]])
    assert bool((around[0] <= model.schedule.alpha_bar[t]).all() and (model.schedule.alpha_bar[t] <= around[1]).all())
    x, text = torch.randn(3, *base.latent_shape, generator=cpu()), base.encode_prompt([PROMPT] * 3)
    assert torch.equal(model.network(x, t, text), base.network(x, known[t], text))


def test_a_config_names_it(tmp_path: Path) -> None:
    options = MVAdapterConfig(**tiny_prior_config(tmp_path, layout="full", mv_scale=0.5))
    options.check()
    model: MVAdapter = build("prior", options)
    assert model.adapted is not None and model.adapted.form == Form("full") and model.adapted.mv_scale == 0.5
    alone = build("prior", options.model_copy(update={"adapter": None}))
    assert alone.adapted is None and alone.sample(PROMPT, C2W, steps=1).shape == (3, 16, 16, 3)
    with pytest.raises(ConfigError, match="adapter: there is no file"):
        options.model_copy(update={"adapter": "nowhere.safetensors"}).check()


def test_samples_from_words_begin_with_what_a_coarse_predictor_expects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coarse_prior().save(tmp_path / "prior")
    options = MVAdapterConfig(**tiny_prior_config(tmp_path, guess=str(tmp_path / "prior")))
    options.check()
    model = build("prior", options)
    monkeypatch.setattr(model, "decode_latents", lambda z: z.permute(0, 2, 3, 1))  # that would enlarge differences
    begun = model.begun(PROMPT, C2W)
    expected = begun.latents.permute(0, 2, 3, 1)

    def error(drawn: torch.Tensor) -> float:
        return float((drawn - expected).abs().mean())

    how: Any = {"steps": 1, "guidance_scale": 1.0, "generator": cpu()}
    control = model.camera(C2W)
    near = model.draw(PROMPT, control, guess=begun._replace(strength=0.001), **how)
    assert error(near) < 0.2 * error(model.draw(PROMPT, control, **how))
    torch.testing.assert_close(model.sample(PROMPT, C2W, guess_noise=0.001, **how | {"generator": cpu()}), near)
    other = model.begun("a blue cat", C2W)
    assert not torch.equal(other.latents, begun.latents) and not torch.equal(begun.latents[0], begun.latents[2])
    assert model.begun(PROMPT, C2W, (16, 24)) is None and model.guess(model.encode_prompt([PROMPT]), None) is None
    seen = np.ones((16, 16, 4), np.float32)
    assert model.with_picture(seen).begun(PROMPT, C2W) is None, "a picture says more"
    of_mesh = adapted_model(Form("rowcol", control="geometry"), ("mv",))
    of_mesh.expects = model.expects
    assert of_mesh.begun(PROMPT, C2W) is None, "a mesh too"


def test_a_coarse_predictor_of_other_models_is_refused(tmp_path: Path) -> None:
    tiny_prior().save(tmp_path / "plain")
    torch.manual_seed(9)
    parts = tiny_unet(in_channels=8, out_channels=4), tiny_vae(), tiny_text_encoder(), word_tokenizer()
    torch.nn.init.normal_(parts[2].get_input_embeddings().weight)
    MVDream(*parts, coarse=tiny_coarse(), dtype="fp32").save(tmp_path / "other")
    for name, sentence in (("plain", "has no coarse predictor; toybox-prior"), ("other", "is of another text encoder")):
        options = MVAdapterConfig(**tiny_prior_config(tmp_path, guess=str(tmp_path / name)))
        with pytest.raises(ConfigError, match=f"^guess: .*{sentence}"):
            build("prior", options)
    with pytest.raises(ConfigError, match="^guess: there is no file or folder"):
        MVAdapterConfig(**tiny_prior_config(tmp_path, guess="nothing/here/at/all")).check()


def test_a_multiview_base_is_refused() -> None:
    unet = tiny_unet(in_channels=8, out_channels=4)
    with pytest.raises(ConfigError, match="weights of a multi-view one; toybox-base"):
        MVAdapter(unet, tiny_vae(), tiny_text_encoder(), word_tokenizer(), coarse=tiny_coarse())


def test_views_it_was_not_trained_for_are_named(caplog: pytest.LogCaptureFixture) -> None:
    model = adapted_model()
    with caplog.at_level(logging.WARNING):
        model.note_views(C2W)
        assert not caplog.records
        model.note_views(views([(0, 45), (20, 45), (0, 100)], 8, 8).c2w)
    assert "views 1, 2 look from where" in caplog.text and "45/0, 90/0" in caplog.text
    assert untrained(views(GEOMETRY_VIEWS, 8, 8).c2w, GEOMETRY_VIEWS) == []
    caplog.clear()
    model = adapted_model(Form(anywhere=0.5))
    with caplog.at_level(logging.WARNING):
        model.note_views(views([(0, 77), (29, 200), (45, 0), (-20, 30)], 8, 8).c2w)
    assert "views 2, 3 look from where" in caplog.text and "45/0, 90/0" in caplog.text
    assert "any/0 to 30" in caplog.text


@pytest.mark.parametrize("fov", [0.0, 30.0, 90.0])
def test_cameras_see_the_whole_mesh(fov: float) -> None:
    corner = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.0, 0.5], [0.0, -0.5, 0.0]])
    for height, width in ((16, 16), (16, 24), (24, 16)):
        pixels, depth = views(GEOMETRY_VIEWS, height, width, fov).project(corner)
        assert (pixels > 0).all() and (pixels < torch.tensor([width, height])).all() and (depth > 0).all()
