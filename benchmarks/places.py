"""Run a tiny run of launch.py in odd places (limits, missing or full folders, odd names), each in its own process.

python -m benchmarks.places           all places
python -m benchmarks.places TMPDIR    places whose name contains the word

Places that mount something are skipped where the machine forbids it. The exit code is 1 if an output has a traceback,
or a result differs from that of the same run in an ordinary place.
"""

import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from threedgen.config.errors import printable
from threedgen.places import folder
from threedgen.testing import tiny_prior
from threedgen.train.checkpoint_file import LAST, read

from .soak import SMALLEST

ROOT = folder("configs").parent
LAUNCH, SECONDS = str(ROOT / "launch.py"), 900
TINY = [word for word in SMALLEST if not word.startswith(("prompt=", "threads=", "export."))] + [
    "trainer.max_steps=20", "checkpoint.seconds=0", "export.budget=200", "export.texture=64", "export.lods=[]",
    "export.resolution=16", "export.refine=2", "prior.weights=../prior",
]  # fmt: skip
RUN = ["out=run", "prompt=a red dog", "threads=1", *TINY]
BATCH = ["--config", "batch", "out=run", "prompts=../prompts.txt", "engine=processes", f"overrides={json.dumps(TINY)}"]
NAME = "a 'b' \"c\" 🐕 $HOME; * %s {} é " + 200 * "x"
RESULT_FILES = ("*.png", "*.mp4", "*.glb")  # have the same bytes in each run


class Place(NamedTuple):
    """Environment and arguments of a run.

    Attributes:
        setup: shell commands before the run, which change limits, variables, mounts or the command of the run, "$@".
        words: arguments of launch.py.
    """

    setup: str = ":"
    words: list[str] = RUN

    def command(self, *command: str) -> list[str]:
        """Return the command that calls `command` in this place."""
        namespace = ["unshare", "--mount", "--map-root-user"] if "mount " in self.setup else []
        return [*namespace, "sh", "-c", f'{self.setup} && exec "$@"', "sh", *command]


# the second user namespace has a user who is not in the system's list of users, which has a home for each of them
NO_HOME = 'unset HOME && set -- unshare --user --map-user=54321 --map-group=54321 "$@"'
FULL = """export TMPDIR=full && mkdir -p full && mount -t tmpfs -o size=16k tmpfs full && {
yes > full/file 2> /dev/null; true; }"""
NO_SHM = """mkdir -p dev && mount -t tmpfs tmpfs dev && for name in null zero random urandom; do
touch dev/$name && mount --bind /dev/$name dev/$name || exit 1; done && mount --rbind dev /dev"""
READ_ONLY = "mount --bind {0} {0} && mount -o remount,bind,ro {0}".format(shlex.quote(str(ROOT)))
ORDINARY, MOVED = "ordinary", "killed, moved, files an hour in the future, resumed: C locale, no TMPDIR, 64 descriptors"
PLACES = {
    ORDINARY: Place(),
    "64 file descriptors": Place("ulimit -n 64"),
    "no HOME, user without a home": Place(NO_HOME),
    "TMPDIR full": Place(FULL),
    "no /dev/shm": Place(NO_SHM),
    "no /dev/shm, batch with engine=processes": Place(NO_SHM, BATCH),
    "2 GB of address space": Place("ulimit -v 2097152"),
    "1 GB of address space": Place("ulimit -v 1048576"),
    "read-only installation, user without a home": Place(f"{READ_ONLY} && {NO_HOME}"),
    "`out` with blanks, quotes, emoji, 200 letters": Place(words=[f"out={NAME}", *RUN[1:]]),
    "ASCII locale, accent in the prompt": Place(
        "export LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0", ["out=run", "prompt=a réd dog", *RUN[2:]]
    ),
    MOVED: Place(f"ulimit -n 64 && export LC_ALL=C TMPDIR=/nonexistent && unset LANG && {NO_HOME}"),
}


def start(place: Place, work: Path, words: Sequence[str]) -> subprocess.Popen[str]:
    """Start launch.py with the arguments `words` in a place and the folder `work`, with its output in a pipe."""
    command, output = place.command(sys.executable, LAUNCH, *words), subprocess.PIPE
    return subprocess.Popen(command, cwd=work, stdout=output, stderr=subprocess.STDOUT, text=True, errors="replace")


def killed_and_moved(work: Path) -> Path:
    """Start a run in an ordinary place, kill it after its first checkpoint, and return the new place of its folder."""
    run = work / "run"
    with start(Place(), work, RUN) as process:
        while process.poll() is None and not (run / "checkpoints" / LAST).exists():
            time.sleep(0.01)
        process.kill()
    if process.returncode >= 0:
        raise RuntimeError(f"the run ended with exit code {process.returncode} before it was killed")
    moved = work / "else where" / NAME
    os.renames(run, moved)
    for path in moved.rglob("*"):
        os.utime(path, (later := path.stat().st_mtime + 3600, later))
    return moved


def digest(work: Path) -> str:
    """Return a hash of the result files and of the weights in the last checkpoint of the run in a folder."""
    (run,), result = (path.parent for path in work.rglob("checkpoints")), hashlib.sha256()
    for path in sorted(path for form in RESULT_FILES for path in run.rglob(form)):
        result.update(str(path.relative_to(run)).encode() + path.read_bytes())
    for name, value in read(run / "checkpoints" / LAST)["state_dict"].items():
        result.update(name.encode() + value.numpy().tobytes())
    return result.hexdigest()


def last_line(output: str) -> str:
    return printable(output.strip().split("\n")[-1], 160).replace("|", "\\|")


def measure(name: str, work: Path, reference: Path) -> tuple[list[str], str]:
    """Run in the place `name` and the new folder `work`. Return the cells of its row, and the whole output.

    `reference` is the folder `work` of the same run in an ordinary place.
    """
    place = PLACES[name]
    work.mkdir()
    try:
        subprocess.run(place.command("true"), cwd=work, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return ["-", f"skipped: {last_line(getattr(error, 'stderr', None) or str(error))}", "-", "-"], ""
    words, began = ["--resume", str(killed_and_moved(work))] if name == MOVED else place.words, time.monotonic()
    with start(place, work, words) as process:
        timer = threading.Timer(SECONDS, process.kill)
        timer.start()
        output = process.communicate()[0].replace(str(work), "...")
        timer.cancel()
    seconds = time.monotonic() - began
    same = "-" if process.returncode or work == reference else "yes" if digest(work) == digest(reference) else "no"
    return [str(process.returncode), last_line(output), f"{seconds:.0f}", same], output


def main(words: Sequence[str]) -> int:
    """Print the table of the places whose name contains the `words`. Return the exit code."""
    chosen, faults = [name for name in PLACES if name != ORDINARY and all(word in name for word in words)], []
    print("| place | exit code | last line of output | s | same result |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        tiny_prior().save(Path(temporary, "prior"))
        Path(temporary, "prompts.txt").write_text("a red dog\n")
        for number, name in enumerate([ORDINARY, *chosen]):
            cells, output = measure(name, Path(temporary, str(number)), Path(temporary, "0"))
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
            if "Traceback" in output or cells[3] == "no":
                faults.append(f"{name}:\n{output}")
    print("\n".join(faults), file=sys.stderr)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
