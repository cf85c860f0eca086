"""Memory that --dry-run prints for sampling and training, against real tensors."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support import tiny_mvdiffusion
from tests.support.card_cases import COMMANDS, dreambooth_config, prior_words
from tests.support.tiny_mvadapter import adapter_base, tiny_model, tiny_prior_config
from tests.support.tiny_prior import cpu
from threedgen.config import load, registry
from threedgen.guidance.attention import decoupled, joined
from threedgen.guidance.priors.mvadapter.model import build
from threedgen.guidance.priors.mvadapter.network import AdaptedUNet
from threedgen.guidance.priors.options import MVAdapterConfig, MVDiffusionConfig
from threedgen.guidance.weights.meta_networks import meta_networks
from threedgen.run import dtypes
from threedgen.run.memory import PeakMemory
from threedgen.systems.memory import geometry, training_prior
from threedgen.systems.meta_prior import Kernels, MetaPrior, measure_sampling, measure_training, weights

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
Words = dict[str, list[str]]


def peak(run: Any, networks: list[nn.Module], trained: list[nn.Parameter], copies: int = 0) -> int:
    """Return the peak memory of a step on the CPU, where all tensors have values, with the attention of a GPU."""
    run()  # what is cached in the first step
    for parameter in trained:
        parameter.grad = None
    with PeakMemory("cpu") as memory, Kernels():
        memory.add(*weights(*networks))
        states = [torch.empty_like(p) for p in trained for _ in range(copies)]
        run()
        del states
    return memory.peak


def test_sampling_with_an_adapter_equals_real_tensors(tmp_path: Path) -> None:
    options = MVAdapterConfig(**tiny_prior_config(tmp_path / "rays"))
    model, maps, size = build(options), torch.rand(6, 6, 96, 96, generator=cpu()), (96, 96)
    picture = torch.rand(96, 96, 3, generator=cpu())

    def sample() -> None:
        model.sample_views("a red dog", maps, picture, size, steps=1, guidance_scale=3.0, generator=cpu())

    real = peak(sample, list(model.networks.values()), [])
    prior = MetaPrior(meta_networks(options.weights), options, CPU, 6, ("mv", "ref"))
    assert measure_sampling(prior, size).peak == pytest.approx(real, rel=0.15)
    assert real > 2 * sum(4 * t.numel() for t in weights(*model.networks.values())), "activations, not weights"


def test_sampling_of_a_panorama_equals_real_tensors() -> None:
    options = MVDiffusionConfig(**tiny_mvdiffusion.tiny_prior_config("panorama"))
    model = registry.build("prior", options)
    scene, size = geometry(5, (64, 64)), (64, 64)

    def sample() -> None:
        model.sample_views(["a kitchen"] * 5, scene, size, steps=1, guidance_scale=3.0, generator=cpu())

    real = peak(sample, list(model.networks.values()), [])
    found = measure_sampling(MetaPrior(meta_networks(options.weights), options, CPU, 5, geometry=scene), size).peak
    assert found == pytest.approx(real, rel=0.25)


def test_training_of_an_adapter_equals_real_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (joined, decoupled):
        monkeypatch.setattr(module, "trains_on_cpu", lambda tokens: False)
    model = tiny_model()
    network = AdaptedUNet(model.unet, model.factor)
    network.new_parts.requires_grad_(True)
    model.with_network(network)
    trained = [p for p in network.parameters() if p.requires_grad]
    z, text = torch.zeros(12, 4, 16, 16), model.encode_prompt(["a red dog"]).detach()
    maps = torch.zeros(12, 6, 32, 32)

    def step() -> Tensor:
        reference = network.reference_features(z[:2], text.expand(2, -1, -1))
        out = model.network(z, torch.full((12,), 300), text.expand(12, -1, -1), maps, 6, reference)
        loss = F.mse_loss(out, z)
        loss.backward()
        return loss

    real = peak(step, list(model.networks.values()), trained, 2)
    prior = training_prior(str(adapter_base()), CPU, 6, ("mv", "ref"))
    for parameter in prior.denoiser.new_parts.parameters():  # type: ignore[union-attr]
        parameter.requires_grad_(True)
    single = measure_training(prior, 12, 2, (16, 16)).peak
    assert single == pytest.approx(real, rel=0.15)
    prior.half = torch.bfloat16
    assert measure_training(prior, 12, 2, (16, 16)).peak < 0.9 * single, "autocast keeps half of the activations"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    dreambooth_config(folder)
    return folder


@pytest.fixture(scope="module")
def words(place: Path) -> Words:
    return prior_words(place)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_gpu_config_has_a_memory_estimate(name: str, place: Path, words: Words, monkeypatch) -> None:
    """A GPU needs less to sample than float32 on a CPU; in a training of tiny networks, casts of weights weigh more."""
    kind, more, _ = COMMANDS[name]
    monkeypatch.chdir(place)
    prompt = [] if "trainer.accelerator=cpu" in more else ["prompt=a red dog"]
    config = load(name.partition(",")[0], [*words[kind], *more, *prompt]).without_unused_sections()
    measure = registry.implementation("memory", config.task)
    single = measure(config, CPU)
    monkeypatch.setattr(dtypes, "_native", lambda device: "bf16" if device.type == "cuda" else "fp32")
    half = measure(config, CUDA)
    assert 0 < half.peak < single.peak * (1 if prompt else 1.1)
    assert half.launches or name == "preview-mvdream-sd21"  # its UNet is one CUDA graph


def test_more_images_need_more_memory(place: Path, words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)

    def found(name: str, *more: str) -> int:
        config = load(name, [*words[COMMANDS[name][0]], *COMMANDS[name][1], *more])
        return int(registry.implementation("memory", config.task)(config, CPU).peak)

    assert found("texture-sd21", "rig.size=128", "prompt=a red dog") > found("texture-sd21", "prompt=a red dog")
    assert found("mvdreambooth-sd21", "tuning.batch=32") > found("mvdreambooth-sd21")
    assert found("mvdreambooth-sd21", "tuning.preservation=none") < found("mvdreambooth-sd21")
    assert found("threedim-srn-cars", "training.batch=8") > found("threedim-srn-cars")
