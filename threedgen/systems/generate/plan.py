"""Text of --dry-run: weights, device, steps and memory of a run.

Nothing is trained and no weights are loaded. The memory is measured on PyTorch's meta device (`memory.py`).
"""

from collections.abc import Sequence

import torch

from threedgen.config import plugins
from threedgen.config.errors import one_line
from threedgen.run.memory import free_bytes
from threedgen.run.threads import set_threads, threads_of
from threedgen.systems.generate.options import GenerateConfig
from threedgen.train.plan import END, device_line, memory_lines, notes
from threedgen.train.task import device as device_name

from .memory import memory
from .presets import memory_by_preset
from .task import check_backends, import_plugin_parts


def plan(config: GenerateConfig) -> str:
    """Return the text of --dry-run: prompt, folder, weights, stages (earlier runs), steps, notes, device and memory.

    Raises ConfigError if the options of a stage are invalid, weights are missing, or a back end (kernels) does not run.
    """
    parts = [*map(config.stage, config.stages), config]
    weights = dict.fromkeys(line for part in parts for line in part.prior.describe())
    lines = [f"would generate: {config.object_text() or config.image}", f"folder: {config.out}", *weights]
    if config.stages:
        lines.append(f"stages: {', '.join(config.stages)}, then the run itself; memory: the largest of them")
    names = [*(f" of {name}" for name in config.stages), ""]
    lines += [f"steps{name}: {steps(part)}" for name, part in zip(names, parts, strict=True)]
    set_threads(threads_of(config))
    for part in parts:
        check_backends(part)
        import_plugin_parts(part)
    device = torch.device(device_name(config.trainer.accelerator))
    lines += [*notes(config), device_line(config)]
    try:
        lines += measured_lines(config, parts, device)
    except Exception as error:
        if not plugins.LOADED:
            raise
        lines.append(f"memory: cannot be measured with the plug-in: {one_line(error)}")
    return "\n".join([*lines, END])


def measured_lines(config: GenerateConfig, parts: Sequence[GenerateConfig], device: torch.device) -> list[str]:
    """Return text lines with the memory that a run needs; `parts` are the configs of its stages and its own."""
    peaks = [memory(part, device) for part in parts if part.prior.describe()]  # a plug-in may have no weights
    largest = max(peaks, key=lambda phases: max(phases.values()), default={})
    found = memory_lines(largest, device, "march.chunk, scenes_per_step or size")
    if peaks and device.type == "cuda" and config.preset == "auto":
        found[1:] = preset_lines(config, device)
    return found


def preset_lines(config: GenerateConfig, device: torch.device) -> list[str]:
    """Return text lines with the memory in GB that a run needs without and with memory presets.

    A memory preset is a set of options that save memory. The first line is for no preset. Presets follow until one
    fits the free memory of the GPU; if none fits, all presets have a line.
    """
    free, lines = free_bytes(device), []
    for name, needed in memory_by_preset(config, device, free):
        fits = needed <= free
        lines.append(f"preset {name or 'null'}: {needed / 1e9:.1f} GB with a margin, {'fits' if fits else 'too much'}")
        if fits:
            break
    return lines


def steps(config: GenerateConfig) -> str:
    """Return a text with the number of steps of a run, such as "1000 (200 fit the sampled views, 800 distil)".

    The numbers in brackets are the steps of its phases: fit of sampled views, distillation, refinement. Phases without
    steps are left out. `config` is the config of the run, or of one of its stages (earlier runs); the steps of other
    runs do not count.
    """
    refined = config.trainer.max_steps - config.warm_steps - config.distilled_steps
    parts = {"fit the sampled views": config.warm_steps, "distil": config.distilled_steps, "refine": refined}
    return f"{config.trainer.max_steps} ({', '.join(f'{count} {name}' for name, count in parts.items() if count)})"
