"""Text of --dry-run: task, output folder, weights, steps and device, without a time estimate."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from threedgen.config import registry
from threedgen.config.sections import TaskConfig
from threedgen.run.dtypes import emulation_note
from threedgen.run.memory import free_bytes, process_bytes
from threedgen.run.prompts import cut_note
from threedgen.run.threads import set_threads, threads_of
from threedgen.train.task import device as device_name

END = "nothing was run or written"


def plan(config: TaskConfig, more: Sequence[str] = ()) -> str:
    """Return the text of --dry-run, which tells what a run with this config would do.

    The lines are: task with its description, folder, prompt, weights of the prior (diffusion model), number of steps,
    `more` (lines of the caller), notes, device, and peak memory. Lines that the config has no values for are left out.

    Raises ConfigError if weights cannot be read.
    """
    config = config.without_unused_sections()
    about = config.about or " ".join((type(config).__doc__ or "").partition("\n\n")[0].split())
    lines = [f"would run {config.task}: {about}"]
    if out := getattr(config, "out", None):
        lines.append(f"folder: {out}")
    if prompt := " ".join(getattr(config, "prompt", "").split()):
        lines.append(f"prompt: {prompt}")
    if describe := getattr(getattr(config, "prior", None), "describe", None):
        lines += describe()
    if trainer := getattr(config, "trainer", None):
        lines.append(f"steps: {trainer.max_steps}")
    set_threads(threads_of(config))
    lines += [*more, *notes(config), device_line(config)]
    if config.task in registry.names("memory"):
        device = _device(config)
        found = registry.implementation("memory", config.task)(config, device)
        lines += memory_lines({} if found is None else {"": found.peak + process_bytes(device)}, device)
    return "\n".join([*lines, END])


def memory_lines(
    phases: Mapping[str, float], device: torch.device, advice: str = "the batch, views or size"
) -> list[str]:
    """Return lines for --dry-run: the peak memory, and a warning if `device` has less free memory; [] without phases.

    `phases` maps names of parts of the run that follow each other to their peak memory in bytes; the largest is the
    peak of the run. The name "" is not shown. `advice` names what the user can reduce, for the end of the warning.
    """
    if not phases:
        return []  # nothing is sampled, or a plug-in without weights
    total, parts = max(phases.values()), ", ".join(f"{name} {size / 1e9:.1f}" for name, size in phases.items() if name)
    lines = [f"memory: about {total / 1e9:.1f} GB at most" + f" ({parts})" * bool(parts)]
    return lines if total <= free_bytes(device) else [*lines, f"memory: more than is free. Reduce {advice}"]


def notes(config: TaskConfig) -> list[str]:
    """Return lines "note: ..." for --dry-run, which tells what a run would do.

    They are the notes of the config (`config.notes()`), a warning if the prompt exceeds the token limit of the prior
    (diffusion model), and a warning if another dtype replaces the option `prior.dtype`, because the device could only
    emulate it.
    """
    prior: Any = getattr(config, "prior", None)
    prompt = " ".join(getattr(config, "prompt", "").split())
    found = [*config.notes()]
    if prompt and hasattr(prior, "tokens_cut"):
        vocabulary = prior.vocabulary()
        found += cut_note(prior.tokens_cut(prompt if vocabulary is None else vocabulary.read(prompt).text))
    found.append(emulation_note(getattr(prior, "dtype", "auto"), _device(config)))
    return [f"note: {note}" for note in found if note]


def device_line(config: TaskConfig) -> str:
    """Return a line for --dry-run: the device, the name of the GPU or the number of CPU threads, and free memory.

    If no GPU was found and the config does not ask for the CPU, the line says so.
    """
    device = _device(config)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    line = f"device: {device}, {name}, {free_bytes(device) / 1e9:.1f} GB free"
    if device.type != "cpu" or _accelerator(config) == "cpu":
        return line
    made_for_one = "GPU" in config.needs and "core" not in config.needs
    return f"{line}; no GPU was found{', and this config is made for one' * made_for_one}"


def _device(config: TaskConfig) -> torch.device:
    return torch.device(device_name(_accelerator(config)))


def _accelerator(config: TaskConfig) -> str:
    return trainer.accelerator if (trainer := getattr(config, "trainer", None)) else "auto"
