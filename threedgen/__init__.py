"""Text to 3D by optimisation, with any combination of diffusion prior, distillation loss and 3D representation.

`threedgen.generate(prompt="a red penguin")` returns the finished run. Its `folder` has the video and the mesh.
"""

import atexit
import importlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from threedgen.places import folder as folder

# Use huge pages for large tensors (Linux): a step takes a third less time on a CPU. torch reads this at its import.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# Let OpenMP threads sleep after microseconds of waiting. With GNU's default of milliseconds, a run takes nearly twice
# as long while another job uses the CPU.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# Numba caches compiled kernels beside the code or in the home folder. Without either it refuses to compile them.
_writable = any(os.access(place, os.W_OK) for place in (Path(__file__).parent, os.path.expanduser("~")))
if not os.environ.get("NUMBA_CACHE_DIR") and not _writable:
    os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp(prefix="threedgen-numba-")
    atexit.register(shutil.rmtree, os.environ["NUMBA_CACHE_DIR"], ignore_errors=True)

__version__ = "0.1.0"
INTERFACE_VERSION = 1
"""Version of the interfaces for plug-ins. It increases with each incompatible change of these interfaces."""

_CHECKOUT = Path(__file__).resolve().parents[1]
if (_CHECKOUT / "launch.py").is_file():  # guidance and representations lie beside this package, not in it
    __path__.append(str(_CHECKOUT))
    importlib.import_module("threedgen.guidance")
    importlib.import_module("threedgen.representations")
    __path__.pop()  # the other folders are not parts of the package


def generate(prompt: str, config: str = "mvdream-toybox", quiet: bool = False, **values: Any) -> Any:
    """Generate a turntable video and a mesh from a prompt.

    Args:
        prompt: text description of the object.
        config: config file of the task generate, or name of such a config that comes with the package.
        quiet: show no progress.
        values: other values of config options, such as `seed=3`, `out="penguin"`, `trainer={"max_steps": 100}` or
            `**{"trainer.max_steps": 100}`.

    Returns:
        The finished run, whose `folder` has the result files. A notebook displays the run.

    Raises:
        threedgen.config.ConfigError: an argument or an option of the config is invalid, or the run failed.
        KeyboardInterrupt: Ctrl-C stopped the run. The same call continues it.
        SystemExit: SIGTERM stopped the run. The same call continues it.
    """
    from threedgen.systems.generate.task import generate as run  # imports torch

    return run(prompt=prompt, config=config, quiet=quiet, **values)
