from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.command import ask
from tests.support.official import NAMES, WIDTHS, Kind, ldm_unet
from tests.support.task_server import prior_folder, tiny_generate
from tests.support.tiny_prior import TEXT_WIDTH, coarse_prior, tiny_prior
from threedgen import cli, config
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.guidance.weights.meta_networks import meta_networks
from threedgen.representations.march import Samples
from threedgen.representations.shapes_only import EqualRays
from threedgen.run.memory import PeakMemory
from threedgen.systems.generate import plan as module
from threedgen.systems.generate.memory import MeasuredSystem, memory
from threedgen.systems.generate.system import GenerateSystem
from threedgen.systems.meta_prior import MetaPrior
from threedgen.train import plan as train_plan


@pytest.fixture
def known_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan whose memory is not measured."""
    monkeypatch.setattr(module, "memory", lambda config, device: {"step at 12 px": 2000.0})


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


@pytest.mark.usefixtures("known_memory")
def test_words_beyond_the_token_limit_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for count, cut in ((1, False), (200, True)):
        words = " and ".join(["a red dog"] * count)
        lines = dry(tmp_path, capsys, f"prompt={words}")[1].splitlines()
        assert any(line.startswith("note: the prompt is too long") for line in lines) == cut


@pytest.mark.usefixtures("known_memory")
def test_too_little_memory_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_plan, "free_bytes", lambda device: 1000)
    assert "more than is free" in dry(tmp_path, capsys)[1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["prompt= "], ("prompt: ",)),
        (["prompt=a corgi"], ("prompt: ", "'corgi' by dog")),
        (["prior.weights=nowhere.pt"], ("prior.weights: ", "nowhere.pt")),
        (["march.backend=nerfacc"], ("march.backend: ", "'nerfacc'", "CUDA")),
        (["--resume", "run"], ("--dry-run: ", "--resume")),
        (["--dry-rn"], ("--dry-rn", "'--dry-run'")),
    ],
)
def test_dry_run_refuses_mistakes(tmp_path: Path, refuses: Any, words: list[str], expected: tuple[str, ...]) -> None:
    refuses(["--config", str(tiny_generate(tmp_path)), "--dry-run", *words], *expected)


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("kind", ["sd21", "sd15"])
def test_missing_released_weights_are_planned_then_refused(kind: Kind, tmp_path: Path, monkeypatch, capsys) -> None:
    """Without weights nothing is fetched, the plan is printed, and the exit code is that of the run."""
    monkeypatch.chdir(tmp_path)
    small = ["field.encoding.log2_hashmap_size=8", "march.samples=24", "occupancy.resolution=8", "threads=1"]
    assert cli.main(["--config", f"mvdream-{kind}", "prompt=an astronaut riding a horse", "--dry-run", *small]) == 2
    output = capsys.readouterr()
    lines = dict(line.split(": ", 1) for line in output.out.splitlines()[:-1])
    assert lines["would generate"] == "an astronaut riding a horse"
    how = f"`hf download MVDream/MVDream {NAMES[kind]}` fetches it"
    assert lines["weights"] == f"{NAMES[kind]}, not on this machine yet; {how}"
    assert "GB at most (loading" in lines["memory"]
    assert output.err.count("\n") == 1 and output.err.startswith(f"prior.weights: '{NAMES[kind]}' is neither a file")
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


def test_dry_run_of_other_tasks(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["--config", "toybox-sheet", "--dry-run", "threads=1"]) == 0
    first, folder, device, last = capsys.readouterr().out.splitlines()
    assert first.startswith("would run toybox-sheet: ")
    assert (
        folder == "folder: outputs/toybox-sheet/run"
        and device.startswith("device: ")
        and last == "nothing was run or written"
    )
    words = [f"prior.weights={prior_folder()}", "prompt=a big dog", "threads=1"]
    assert cli.main(["--config", "sample-toybox", "--dry-run", *words]) == 0
    out = capsys.readouterr().out
    lines = dict(line.split(": ", 1) for line in out.splitlines()[:-1])
    assert lines["prompt"] == "a big dog" and str(prior_folder()) in lines["weights"]
    assert "\nnote: this prior does not know 'big'; it is ignored\n" in out and lines["note"].endswith("'a dog'")
    assert cli.main(["--config", "train-toybox-probe", "--dry-run", "trainer.max_steps=7", "threads=1"]) == 0
    assert "\nsteps: 7\n" in capsys.readouterr().out and not list(tmp_path.iterdir())


@pytest.mark.usefixtures("known_memory")
def test_ignored_options_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = dry(tmp_path, capsys, "prompt=a fluffy dog and a cat")
    notes = [line for line in out.splitlines() if line.startswith("note: ")]
    assert code == 0 and len(notes) == 3 and "does not know 'fluffy'" in notes[0] and "dog and cat" in notes[2]
    assert "'a dog and a cat'" in notes[1]
    for option, unknown in (
        ("export.enabled=true", "'fluffy'"),
        ("export.enabled=false", "'wooden', 'fluffy'"),
        ("export.material=glass", "'wooden', 'fluffy'"),
    ):
        code, out, _ = dry(tmp_path, capsys, "prompt=a wooden fluffy dog", option)
        assert code == 0 and f"note: this prior does not know {unknown};" in out, "a word that sets the material counts"
    code, out, _ = dry(tmp_path, capsys, "prompt=a dog", "negative_prompt=ugly zebra")
    notes = [line for line in out.splitlines() if line.startswith("note: ")]
    assert notes == ["note: negative_prompt: this prior does not know 'ugly', 'zebra'; they are ignored"]


@pytest.mark.usefixtures("known_memory")
def test_missing_gpu_is_reported(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    auto = "trainer.accelerator=auto"
    assert "GB free; no GPU was found\n" in dry(tmp_path, capsys, auto)[1]
    made_for_one = dry(tmp_path, capsys, auto, "needs=weights, a GPU")[1]
    assert "no GPU was found, and this config is made for one\n" in made_for_one
    assert "no GPU" not in dry(tmp_path, capsys, "trainer.accelerator=cpu")[1]


@pytest.mark.parametrize("name", ["gpu", "cuda", "mps"])
def test_missing_device_is_refused_before_loading(name: str, tmp_path: Path, monkeypatch, refuses) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    words = ["--config", str(tiny_generate(tmp_path)), f"trainer.accelerator={name}", f"out={tmp_path / 'run'}"]
    for more in ([], ["--dry-run"]):
        assert refuses([*words, *more]).startswith("trainer.accelerator: ")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    if name != "mps":
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
    assert vsd["final images"] > whole["final images"]


@pytest.mark.parametrize("loss", ["ism", "csd", "sdi", "jsd"])
def test_memory_of_a_loss_that_reads_numbers_on_the_host(loss: str, tmp_path: Path) -> None:
    """Without values there are none: ism and sdi take their number of inversion steps from a tensor."""
    assert needed(tmp_path, f"distillation={{name: {loss}}}")["step at 8 px"] > 4e8


def test_memory_of_a_loss_with_the_empty_prompt_and_view_prompts(tmp_path: Path) -> None:
    words = [
        "distillation={name: csd}",
        "negative_prompt=ugly",
        "view_prompts={enabled: true, perp_neg: true}",
        "camera.n_view=1",
    ]
    assert needed(tmp_path, *words)["step at 8 px"] > 4e8


def test_a_gpu_needs_half_of_the_frozen_weights_and_more_for_a_cuda_graph(tmp_path: Path) -> None:
    cases = ("fp32",), ("fp16", "prior.cuda_graph=false"), ("fp16",)
    single, half, graph = (needed(tmp_path, f"prior.dtype={d}", *more, device="cuda", free=8e9) for d, *more in cases)
    assert half["step at 8 px"] < single["step at 8 px"] and half["step at 8 px"] < graph["step at 8 px"]
    assert half["loading and preview"] == graph["loading and preview"] < single["loading and preview"]


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


@pytest.mark.parametrize("rays", [500, 60, 40, 7])  # of 128: 1, 3, 4 and 19 chunks
def test_launches_of_all_chunks_count(rays: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many chunks only three are measured; the launches equal those of all chunks, computed one by one."""

    def launches() -> dict[str, int]:
        found = dict[str, int]()
        needed(tmp_path, f"march.chunk={rays * 8}", "march.samples=8", launches=found)
        return found

    extrapolated = launches()
    for name in ("split", "select_rays"):
        monkeypatch.setattr(EqualRays, name, getattr(Samples, name))
    assert extrapolated == launches() and extrapolated["step at 8 px"] > 100


def test_kernel_of_the_mlps_is_assumed_only_where_a_run_has_it(tmp_path: Path, monkeypatch) -> None:
    """Triton's kernel keeps no hidden values, so a step takes less memory, and a chunk has more samples."""

    def measured(device: str, *words: str) -> tuple[int, float]:
        options = config.load(tiny_generate(tmp_path), ["field.width=64", "march.samples=96", *words])
        where = torch.device(device)
        prior = MetaPrior(meta_networks(str(prior_folder())), options.prior, where, 4)
        system = MeasuredSystem(options, prior, where)
        system.choose_chunks(8e9)
        chunk = system.chunks.measured.get("without normals", 0)
        step = options.warm_steps + 1
        return chunk, system.peak(lambda: system.distillation_loss(step).loss)

    samples, layers = 2 * 8**2 * 96, "field.encoding.backend=torch"  # 2 views of 8 pixels
    monkeypatch.setattr("threedgen.representations.backends.installed", lambda name: name in ("numba", "triton"))
    for chunk in ("march.chunk=null", "march.chunk=auto"):
        kernel, torch_layers = measured("cuda", chunk), measured("cuda", chunk, layers)
        assert torch_layers[1] - kernel[1] > samples * 64 * 4, "the hidden values of a sample"
        assert measured("cpu", chunk)[0] == torch_layers[0]
    assert kernel[0] >= 2 * torch_layers[0] > 0
    monkeypatch.setattr("threedgen.representations.backends.installed", lambda name: name == "numba")
    assert measured("cuda", "march.chunk=auto") == torch_layers


@pytest.mark.parametrize("make", [tiny_prior, coarse_prior])
def test_parameters_are_counted_on_the_meta_device(tmp_path: Path, make: Callable[[], MVDream]) -> None:
    prior = make()
    prior.save(tmp_path / "prior")
    found = meta_networks(str(tmp_path / "prior"))
    assert found.parameters == sum(p.numel() for network in prior.networks.values() for p in network.parameters())
    assert {p.device.type for network in (found.unet, found.vae) for p in network.parameters()} == {"meta"}
    prior.free_text_encoder()
    assert found.kept == sum(p.numel() for network in prior.networks.values() for p in network.parameters())
