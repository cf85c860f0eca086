from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.command import ask
from tests.support.official import NAMES, WIDTHS, Kind, ldm_unet
from tests.support.task_server import prior_folder, tiny_generate
from tests.support.tiny_prior import TEXT_WIDTH, tiny_prior
from threedgen import cli, config
from threedgen.guidance.weights.meta_networks import meta_networks
from threedgen.run.memory import PeakMemory
from threedgen.systems.generate import plan as module
from threedgen.systems.generate.memory import MeasuredSystem, memory
from threedgen.systems.generate.system import GenerateSystem
from threedgen.systems.meta_prior import MetaPrior


def dry(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    return ask(capsys, "--config", str(tiny_generate(folder)), "--dry-run", *words)


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = dry(tmp_path, capsys, "out=run")
    assert code == 0 and [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]
    lines = dict(line.split(": ", 1) for line in out.splitlines()[:-1])
    assert lines["would generate"] == "a red dog" and lines["device"].startswith("cpu, 1 threads")
    assert str(prior_folder()) in lines["weights"] and len(lines["weights"].rpartition(" ")[2]) == 65
    assert lines["memory"].startswith("about 1.0 GB at most (loading") and "step at 12 px" in lines["memory"]
    assert out.splitlines()[-1] == "nothing was run or written"


@pytest.mark.usefixtures("no_hub")
def test_missing_released_weights_are_planned_then_refused(tmp_path: Path, monkeypatch, capsys) -> None:
    """Without weights nothing is fetched, the plan is printed, and the exit code is that of the run."""
    monkeypatch.chdir(tmp_path)
    small = ["field.encoding.log2_hashmap_size=8", "march.samples=24", "occupancy.resolution=8", "threads=1"]
    assert cli.main(["--config", "mvdream-sd21", "prompt=an astronaut riding a horse", "--dry-run", *small]) == 2
    output = capsys.readouterr()
    lines = dict(line.split(": ", 1) for line in output.out.splitlines()[:-1])
    assert lines["would generate"] == "an astronaut riding a horse"
    how = f"`hf download MVDream/MVDream {NAMES['sd21']}` fetches it"
    assert lines["weights"] == f"{NAMES['sd21']}, not on this machine yet; {how}"
    assert "GB at most (loading" in lines["memory"]
    assert output.err.count("\n") == 1 and output.err.startswith(f"prior.weights: '{NAMES['sd21']}' is neither a file")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("kind", ["sd21", "sd15"])
def test_meta_networks_equal_the_released_files(kind: Kind) -> None:
    """Compare names and shapes of the UNet, and parameter counts."""
    found = meta_networks(NAMES[kind])
    with torch.device("meta"):
        names = ldm_unet(kind, WIDTHS)
    assert {tuple(t.shape) for t in names.values()} == {tuple(t.shape) for t in found.unet.state_dict().values()}
    unet = sum(p.numel() for p in found.unet.parameters())
    assert unet == {"sd21": 867_572_164, "sd15": 861_182_404}[kind] == sum(t.numel() for t in names.values())
    text = found.parameters - unet - sum(p.numel() for p in found.vae.parameters())
    assert text == {"sd21": 340_387_840, "sd15": 123_060_480}[kind], "OpenCLIP ViT-H without its last layer; CLIP ViT-L"
    assert unet < found.kept < unet + 35e6, "and the encoder of the VAE"


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (["toybox-sheet"], ["would run toybox-sheet: ", "folder: outputs/toybox-sheet/run\n", "device: "]),
        (
            ["sample-toybox", "prior.weights={prior}", "prompt=a big dog"],
            ["weights: {prior}", "prompt: a big dog\n", "note: this prior does not know 'big'"],
        ),
        (["train-toybox-probe", "trainer.max_steps=7"], ["steps: 7\n"]),
    ],
)
def test_dry_run_of_other_tasks(words: list[str], lines: list[str], tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    words, lines = ([text.replace("{prior}", str(prior_folder())) for text in texts] for texts in (words, lines))
    assert cli.main(["--dry-run", "threads=1", "--config", *words]) == 0 and not list(tmp_path.iterdir())
    out = f"\n{capsys.readouterr().out}"
    assert all(f"\n{line}" in out for line in lines) and out.endswith("\nnothing was run or written\n")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], []),
        ([f"prompt={' and '.join(['a red dog'] * 200)}"], ["note: the prompt is too long"]),
        (["prompt=a fluffy dog and a cat"], ["'fluffy'", "'a dog and a cat'", "dog and cat"]),
        (["prompt=a wooden fluffy dog", "export.enabled=true"], ["does not know 'fluffy'", "'wooden'"]),
        (["negative_prompt=ugly zebra"], ["note: negative_prompt: ", "'ugly', 'zebra'"]),
        (["prior.dtype=fp16"], ["note: dtype fp16"]),
    ],
    ids=lambda value: str(value)[:60],
)
def test_notes_name_what_is_ignored_or_changed(tmp_path: Path, monkeypatch, capsys, words, expected) -> None:
    monkeypatch.setattr(module, "memory", lambda config, device: {"step at 12 px": 2000.0})
    code, out, _ = dry(tmp_path, capsys, *words)
    notes = [line for line in out.splitlines() if line.startswith("note: ")]
    assert code == 0 and bool(notes) == bool(expected)
    assert all(any(part in note for note in notes) for part in expected), notes


@pytest.mark.parametrize("name", ["gpu", "mps"])
def test_missing_device_is_refused_before_loading(name: str, tmp_path: Path, monkeypatch, refuses) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    words = ["--config", str(tiny_generate(tmp_path)), f"trainer.accelerator={name}", f"out={tmp_path / 'run'}"]
    for more in ([], ["--dry-run"]):
        assert refuses([*words, *more]).startswith("trainer.accelerator: ")
    assert not (tmp_path / "run").exists()
    if name == "gpu":
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        config.load(tiny_generate(tmp_path), [f"trainer.accelerator={name}"]).trainer.check()


def needed(folder: Path, *words: str, device: str = "cpu", **more: Any) -> dict[str, float]:
    """Return the measured memory of the tiny config: 2 images of 8 pixels, then 2 and 4 of 12 pixels."""
    small = ["march.chunk=null", "result.turntable.height=4", "result.turntable.width=4"]
    return memory(config.load(tiny_generate(folder), [*small, *words]), torch.device(device), **more)


def test_memory_is_measured_for_each_kind_of_step(tmp_path: Path) -> None:
    large = ["result.turntable.height=64", "result.turntable.width=64"]
    whole, vsd = needed(tmp_path), needed(tmp_path, "distillation={name: vsd}", *large)
    assert list(whole) == ["loading and preview", "step at 8 px", "step at 12 px", "fit to views", "final images"]
    assert whole["step at 12 px"] > whole["step at 8 px"] > 4e8, "Python and its libraries alone need that"
    assert needed(tmp_path, "trainer.max_steps=1000000000") == pytest.approx(whole, rel=1e-3), "it takes no longer"
    assert needed(tmp_path, "march.chunk=400")["step at 12 px"] < whole["step at 12 px"]
    assert needed(tmp_path, "march.samples=3")["step at 12 px"] < whole["step at 12 px"]
    assert vsd["step at 8 px"] > whole["step at 8 px"], "the graph of the UNet"
    lit = needed(tmp_path, "material={name: diffuse, ambient_only_steps: 0, diffuse_probability: 1}")
    assert lit["step at 12 px"] > whole["step at 12 px"], "normals"
    for schedule in ("{0: 0, 5: 1}", "{0%: 0, 100%: 1}"):
        oriented = needed(tmp_path, f"loss={{orientation: {schedule}}}")
        assert oriented["step at 12 px"] > whole["step at 12 px"]
    assert vsd["final images"] > whole["final images"]


LOSSES = [["distillation={name: ism}"], ["distillation={name: sdi}"], ["distillation={name: jsd}"]]
VIEW_PROMPTS = ["negative_prompt=ugly", "view_prompts={enabled: true, perp_neg: true}", "camera.n_view=1"]


@pytest.mark.parametrize("words", [*LOSSES, ["distillation={name: csd}", *VIEW_PROMPTS]])
def test_memory_of_losses_that_read_numbers_or_more_prompts(words: list[str], tmp_path: Path) -> None:
    """Without values there are no numbers: ism and sdi take their number of inversion steps from a tensor."""
    assert needed(tmp_path, *words)["step at 8 px"] > 4e8


def test_a_gpu_needs_half_of_the_frozen_weights_and_more_for_a_cuda_graph(tmp_path: Path) -> None:
    cases = ("fp32",), ("fp16", "prior.cuda_graph=false"), ("fp16",)
    single, half, graph = (needed(tmp_path, f"prior.dtype={d}", *more, device="cuda", free=8e9) for d, *more in cases)
    assert half["step at 8 px"] < single["step at 8 px"] and half["step at 8 px"] < graph["step at 8 px"]
    assert half["loading and preview"] == graph["loading and preview"] < single["loading and preview"]


def test_fused_kernel_of_the_mlps_needs_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's kernel keeps no hidden values."""
    monkeypatch.setattr("threedgen.representations.backends.installed", lambda name: name in ("numba", "triton"))
    words = ["field.width=64", "march.samples=96"]
    fused, layers = (
        needed(tmp_path, *words, f"field.encoding.backend={backend}", device="cuda", free=8e9)["step at 8 px"]
        for backend in ("auto", "torch")
    )
    assert layers - fused > 2 * 8**2 * 96 * 64 * 4, "hidden values of the samples of two views"


@pytest.mark.parametrize(
    "words", [["march.chunk=null"], ["march.chunk=400"], ["march.chunk=null", "field.width=64", "march.samples=192"]]
)
def test_measured_memory_equals_that_of_real_tensors(words: list[str], tmp_path: Path) -> None:
    """The same step on the CPU, where all tensors have values."""
    options = config.load(tiny_generate(tmp_path), words)
    prior = tiny_prior()
    prior.free_text_encoder()
    real = GenerateSystem(options.model_copy(update={"occupancy": None}), prior, torch.zeros(6, 16, TEXT_WIDTH))
    for network in prior.networks.values():
        network.requires_grad_(False)
    step = options.warm_steps + 1
    cameras = real.training_rig(step).cameras
    fraction = real.render(cameras, step, training=True).n_samples / (len(cameras) * 8**2 * options.march.samples)
    real.distillation_loss(step).loss.backward()  # warm-up
    trained = list(real.parameters())
    with PeakMemory("cpu") as tracker:
        tracker.add(*trained, *(t for network in prior.networks.values() for t in network.parameters()))
        moments = [torch.empty_like(p) for p in trained for _ in range(2)]
        for parameter in trained:
            parameter.grad = None
        real.distillation_loss(step).loss.backward()
        del moments
    networks = meta_networks(str(prior_folder()))
    device = torch.device("cpu")
    march = options.march.model_copy(update={"samples": max(1, round(options.march.samples * fraction))})
    options = options.model_copy(update={"march": march})
    measured = MeasuredSystem(options, MetaPrior(networks, options.prior, device, 4), device)
    found = measured.peak(lambda: measured.distillation_loss(step).loss)
    assert found == pytest.approx(tracker.peak, rel=0.1)
