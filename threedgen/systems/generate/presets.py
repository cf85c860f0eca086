"""Memory presets, such as memory-24gb (configs/presets): options with which a run fits the free memory of a GPU."""

import logging
from collections.abc import Iterator
from pathlib import Path

import torch

from threedgen.config import merge, plain, validate
from threedgen.config.errors import one_line
from threedgen.config.layers import preset_layers
from threedgen.config.plain_file import read_json
from threedgen.run.disk import write_json
from threedgen.run.folder import PRESET
from threedgen.run.memory import free_bytes

from .options import GenerateConfig

logger = logging.getLogger(__name__)

PRESETS = ("memory-24gb", "memory-12gb", "memory-8gb")
MARGIN, ERROR = 1e9, 1.1  # bytes that libraries take on a GPU, and factor for the largest error of the measured memory


def choose_preset(config: GenerateConfig, device: torch.device, folder: Path) -> GenerateConfig:
    """Return the config with the first memory preset with which the run fits the free memory of the GPU.

    A memory preset, such as "memory-24gb", is a set of options with which a run needs less memory. The config stays
    unchanged in these cases:

    - the option `preset` is not "auto"
    - the run starts on another device than a CUDA GPU
    - the run fits without a preset, or does not fit with any preset
    - the memory cannot be measured, for example because the prior of a plug-in has no weights

    The choice is stored in the run folder `folder`, so a resumed run uses the same preset, also on another device.
    """
    record = folder / PRESET
    if config.preset != "auto" or (device.type != "cuda" and not record.exists()):
        return config
    if not record.exists():
        write_json(record, {"preset": _fitting_preset(config, device)})
    name = read_json(record).get("preset")
    if name not in PRESETS:
        return config
    logger.info("preset=%s, to fit the free memory of the run's GPU (preset=null: none)", name)
    return with_preset(config, name)


def _fitting_preset(config: GenerateConfig, device: torch.device) -> str | None:
    free = free_bytes(device)
    try:
        return next((name for name, needed in memory_by_preset(config, device, free) if needed <= free), None)
    except Exception as error:  # a plug-in may have no weights, or not run on the meta device, in any way
        logger.warning("the memory cannot be measured: %s. The run starts without a memory preset", one_line(error))
        logger.debug("the memory cannot be measured", exc_info=error)
        return None


def with_preset(config: GenerateConfig, name: str) -> GenerateConfig:
    """Return the config, in which the options of the memory preset `name` replace options of the config.

    The option `march.chunk` stays unchanged if it is a smaller number than that of the preset.
    """
    (layer,) = preset_layers({"preset": name})
    tree = merge(plain(config), layer.tree)
    if isinstance(config.march.chunk, int):
        tree["march"]["chunk"] = min(config.march.chunk, tree["march"]["chunk"])
    found: GenerateConfig = validate(type(config), [layer._replace(tree=tree)])
    return found.model_copy(update={"preset": name, "view": config.view, "checkpoint": config.checkpoint})


def memory_by_preset(config: GenerateConfig, device: torch.device, free: float) -> Iterator[tuple[str | None, float]]:
    """Yield pairs (preset name, bytes of memory that a run needs with this preset). None as the name: no preset.

    The bytes are the peak memory, measured on torch's meta device, plus 10 % for errors of the measurement and 1 GB for
    libraries on the GPU. `free` is the number of bytes that are free before the run; if `march.chunk` is "auto", more
    free memory can mean larger chunks of ray samples and a higher peak.
    """
    from .memory import memory  # takes seconds to import

    for name in (None, *PRESETS):
        part = config if name is None else with_preset(config, name)
        yield name, ERROR * max(memory(part, device, free).values()) + MARGIN
