"""May this checkpoint be continued here? Its config and its machine are compared with the present ones."""

from __future__ import annotations

import logging
import platform
from typing import Any

import numba
import pytorch_lightning as pl
import torch

from threedgen.config import yaml_text
from threedgen.config.errors import ConfigError
from threedgen.run import folder as runs

logger = logging.getLogger(__name__)

CONFIG_KEY = "config_yaml"
NUMERICS_KEY = "numerics"
_SHOWN = 6


def check_config(checkpoint: dict[str, Any], config_yaml: str) -> None:
    """Raises ConfigError, naming the keys, if the config that made `checkpoint` differs in what counts.

    Keys that only change how long a run runs and what it shows may differ (runs.HARMLESS). A checkpoint or a
    run without a config (a module used from Python) is not compared.
    """
    old = str(checkpoint.get(CONFIG_KEY, ""))
    if not old or not config_yaml:
        return
    before, after = (yaml_text.parse(text, "the config in the checkpoint") for text in (old, config_yaml))
    changed = runs.differences(before, after)
    if changed:
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise ConfigError(
            f"the checkpoint was made with another config ({'; '.join(changed[:_SHOWN])}{more}): "
            "use the old values, or another output folder"
        )


def numerics() -> dict[str, str]:
    """What decides the last bits of results: versions, processor, threads."""
    rays = numba.get_num_threads()  # asked first: its first call may change torch's number, see loop.set_threads
    return {
        "torch": str(torch.__version__),  # a class of torch's own, which a checkpoint must not hold
        "lightning": pl.__version__,
        "numba": numba.__version__,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": f"{torch.get_num_threads()}/{rays}",
    }


def warn_numerics(checkpoint: dict[str, Any]) -> None:
    """One line if the run goes on under other circumstances: then it may differ in the last bits."""
    before, now = checkpoint.get(NUMERICS_KEY, {}), numerics()
    other = [name for name in now if before.get(name, now[name]) != now[name]]
    if other:
        changes = ", ".join(f"{name} {before[name]} -> {now[name]}" for name in other)
        logger.warning("results may differ in the last bits from a run without a stop: %s", changes)


def check_fits(module: torch.nn.Module, checkpoint: dict[str, Any]) -> None:
    """Raises ConfigError if the weights in `checkpoint` have other names or shapes than those of `module`."""
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    stored = {name: tuple(getattr(value, "shape", ())) for name, value in checkpoint["state_dict"].items()}
    wrong = [name for name in [*wanted, *stored] if wanted.get(name) != stored.get(name)]
    if wrong:
        name = wrong[0]
        raise ConfigError(
            f"the checkpoint is of another architecture: {name} is {stored.get(name, 'absent')} in it "
            f"and {wanted.get(name, 'absent')} here ({len(set(wrong))} such tensors)"
        )
