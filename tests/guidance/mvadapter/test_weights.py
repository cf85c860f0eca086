"""Files of adapters: of our own, as they are released, of other bases, damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.tiny_mvadapter import BOTH, TOYBOX, awaken
from tests.support.tiny_mvdiffusion import inputs, tiny_base
from threedgen import cli
from threedgen.config import ConfigError
from threedgen.guidance.mvadapter.form import Form
from threedgen.guidance.mvadapter.network import AdaptedUNet
from threedgen.guidance.mvadapter.weights import convert_adapter, load_adapter, save_adapter
from threedgen.guidance.options import MVAdapterConfig, MVDiffusionConfig
from threedgen.guidance.weights import shipped
from threedgen.guidance.weights.plugins import locate


def trained(branches: tuple = BOTH, form: Form | None = None) -> AdaptedUNet:
    network = AdaptedUNet(tiny_base(), 8, form or Form(), branches)
    awaken(network)
    return network.half().float().eval()


@pytest.mark.parametrize("branches", [("mv",), ("mv", "ref"), ("ref",), ()])
@torch.no_grad()
def test_an_adapter_comes_back(branches: tuple, tmp_path: Path) -> None:
    form = Form("full", "serial", "geometry", 6.0, "default", timestep="matched")
    network = trained(branches, form)
    save_adapter(tmp_path / "a.safetensors", network)
    base = tiny_base().half().float()
    loaded = load_adapter(tmp_path / "a.safetensors", base)
    assert loaded.network.form == form and loaded.network.branches == branches and loaded.ignored == ()
    assert not any(parameter.requires_grad for parameter in loaded.network.parameters())
    x, t, text = inputs(3)
    control = torch.rand(3, 6, 1, 1)
    assert torch.equal(loaded.network(x, t, text, control, 3), network(x, t, text, control, 3))
    asked = load_adapter(tmp_path / "a.safetensors", base, layout="row", shift=None).network.form
    assert asked == Form("row", "serial", "geometry", 6.0, "default", timestep="matched")


def test_files_have_the_released_names_and_not_the_base(tmp_path: Path) -> None:
    save_adapter(tmp_path / "a.safetensors", trained())
    names = load_file(tmp_path / "a.safetensors").keys()
    attn = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor"
    every = [f"{attn}.to_{kind}_{branch}" for kind in "qkv" for branch in BOTH]
    every += [f"{attn}.to_out_{branch}.0" for branch in BOTH] + ["adapter.conv_in", "adapter.body.1.resnets.0.block2"]
    assert {f"{name}.weight" for name in every} <= names
    assert not any(name.startswith("conv_in") or "attn2" in name or ".to_q." in name for name in names)


def released() -> dict[str, Tensor]:
    return trained().adapter_state() | {"unet_ema.decay": torch.ones(1)}


def test_a_released_file_says_nothing_of_itself(tmp_path: Path) -> None:
    tensors = {name: tensor.clone() for name, tensor in released().items()}
    save_file(tensors, tmp_path / "a.safetensors")
    loaded = load_adapter(tmp_path / "a.safetensors", tiny_base())
    assert loaded.network.form == Form() and loaded.ignored == ("unet_ema.decay",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adapter.conv_in.bias": None}, "1 tensors are missing .*adapter.conv_in.bias"),
        ({"adapter.new": torch.ones(1)}, "1 are unknown"),
        ({"adapter.conv_in.bias": torch.ones(7)}, "1 have another shape"),
        ({"adapter.conv_in.bias": torch.full((32,), torch.nan)}, "not finite"),
        (
            {"mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_k_ref.weight": None},
            "1 tensors are missing .*to_k_ref",
        ),
    ],
)
def test_what_matters_has_to_fit(change: dict[str, Tensor | None], message: str) -> None:
    tensors = {name: tensor for name, tensor in (released() | change).items() if tensor is not None}
    with pytest.raises(ConfigError, match=message):
        convert_adapter(tensors, tiny_base())


def test_the_guider_may_be_deeper_than_the_base() -> None:
    network = AdaptedUNet(tiny_base(), depth=3)
    found = convert_adapter(network.adapter_state(), tiny_base()).network
    assert len(found.guider.adapter.body[0].resnets) == 3


def test_the_guider_may_see_smaller_maps() -> None:
    network = AdaptedUNet(tiny_base(), branches=("mv",), downscale=2)
    found = convert_adapter(network.adapter_state(), tiny_base()).network
    assert (found.guider.downscale_factor, found.multiple) == (2, 8)


def test_adapters_of_other_bases_are_refused(tmp_path: Path) -> None:
    wrong = "another base: it is for 4 layers of attention, 32 to 32 wide, this one has "
    with pytest.raises(ConfigError, match=wrong + "7 layers of attention, 32 to 64 wide"):
        convert_adapter(released(), tiny_base(**TOYBOX))
    with pytest.raises(ConfigError, match=wrong + "4 layers of attention, 64 to 64 wide"):
        convert_adapter(released(), tiny_base(block_out_channels=(64, 64)))
    save_adapter(tmp_path / "a.safetensors", trained())
    with pytest.raises(ConfigError, match="another base: its text had 16 features, this one's has 20"):
        load_adapter(tmp_path / "a.safetensors", tiny_base(cross_attention_dim=20))
    with pytest.raises(ConfigError, match="they are not an adapter"):
        convert_adapter(tiny_base().state_dict(), tiny_base())


def test_a_base_that_was_tuned_takes_the_adapter() -> None:
    other = tiny_base()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.01
    assert convert_adapter(released(), other).network.form == Form()


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"layout": "rows"}, "unknown layout 'rows'.*rowcol"),
        ({"shift": "many"}, "shift should be a number from 1 to 1000, and its file says 'many'"),
        ({"shift": "0.5"}, "shift should be a number from 1 to 1000"),
        ({"fov": "nan"}, "fov should be a number from 0 to 100"),
    ],
)
def test_what_a_file_says_is_checked(card: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        convert_adapter(released(), tiny_base(), card=card)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"adapter: there is no file 'nowhere.safetensors'.*huanngzh/mv-adapter"):
        locate("adapter", "nowhere.safetensors")
    with pytest.raises(ConfigError, match=r"blocks: there is no file 'toybox-pano'; did you mean 'toybox-panorama'"):
        locate("blocks", "toybox-pano")


@pytest.mark.parametrize(
    "words",
    [["--config", "mvadapter-toybox"], ["prior.name=mvadapter"], ["--config", "quick-toybox", "prior.name=mvadapter"]],
)
def test_an_adapter_that_is_not_trained_yet(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    adapter = "prior.adapter=outputs/train-mvadapter-toybox/run/adapter.safetensors"
    for more in ([], ["--dry-run"]):
        assert cli.main([*words, adapter, "prompt=a red dog", *more]) == 2
        said = capsys.readouterr().err
        assert "`python launch.py --config train-mvadapter-toybox` leaves it there (needs: 1 core, hours)" in said
    assert list(tmp_path.iterdir()) == []


def test_help_promises_only_what_is_there() -> None:
    for config, key in ((MVDiffusionConfig, "blocks"), (MVAdapterConfig, "adapter")):
        told = str(config.model_fields[key].description)
        assert {name for name in shipped.FILES[key] if name in told} == set(shipped.here(key))


def test_only_files_that_are_there_are_known_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "folder", lambda name: tmp_path / name)
    with pytest.raises(ConfigError, match=r"^adapter: there is no file 'toybox-ray'; train-mvadapter leaves one"):
        locate("adapter", "toybox-ray")
    with pytest.raises(ConfigError, match=r"^adapter: toybox-rays does not come with this installation; train-"):
        locate("adapter", "toybox-rays")
    (tmp_path / "weights" / "toybox-mvadapter").mkdir(parents=True)
    geometry = tmp_path / "weights" / "toybox-mvadapter" / "geometry.safetensors"
    geometry.touch()
    assert shipped.choice("adapter", "a file") == "toybox-geometry, a file" and shipped.choice("blocks", "x") == "x"
    assert locate("adapter", "toybox-geometry") == geometry
    with pytest.raises(ConfigError, match=r"no file 'nowhere' \(known by name: toybox-geometry\); train-mvadapter"):
        locate("adapter", "nowhere")
    with pytest.raises(ConfigError, match=r"no file 'toybox-geo'; did you mean 'toybox-geometry'\? train-mvadapter"):
        locate("adapter", "toybox-geo")
