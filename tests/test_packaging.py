import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import threedgen
from threedgen.config import registry
from threedgen.representations.options import NGPConfig

ROOT = Path(__file__).parents[1]


def python(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run([sys.executable, *words], cwd=cwd, env=clean | environment, capture_output=True, text=True)


def test_the_folders_have_one_name() -> None:
    from threedgen import guidance, representations

    assert sys.modules["threedgen.guidance"] is guidance is threedgen.guidance
    assert sys.modules["threedgen.representations"] is representations
    assert NGPConfig.__module__ == "threedgen.representations.options"


def test_only_the_package_is_importable() -> None:
    code = (
        "for name in ('guidance', 'representations', 'threedgen.setup'):\n"
        "    try: __import__(name)\n"
        "    except ImportError as error: print(error)\n"
    )
    bare, other, above = python("-c", code, cwd=ROOT).stdout.splitlines()
    assert "threedgen.guidance" in bare and "threedgen.representations" in other and "threedgen.setup" in above


def test_launch_runs_in_a_bare_checkout_and_from_elsewhere(tmp_path: Path) -> None:
    for cwd in (ROOT, tmp_path):
        done = python(str(ROOT / "launch.py"), "--version", cwd=cwd)
        assert done.stdout == f"threedgen {threedgen.__version__}\n", done.stderr


def test_checkout_with_windows_line_ends_leaves_weight_files_unchanged(tmp_path: Path) -> None:
    """`core.autocrlf=true` is the default of Git for Windows; the files are compared with SHA256SUMS when loaded."""
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout")
    file = "weights/toybox-matte/config.json"
    git = ["git", "-c", "core.autocrlf=true", "-C", str(ROOT)]
    subprocess.run([*git, "checkout-index", f"--prefix={tmp_path}/", file], check=True)
    assert (tmp_path / file).read_bytes() == (ROOT / file).read_bytes()


def test_kernels_compile_where_no_folder_is_writable() -> None:
    code = "import os; os.access = lambda *_: False; import threedgen; f = os.environ['NUMBA_CACHE_DIR']"
    folder, mode = python(
        "-c", f"{code}; print(f, os.stat(f).st_mode & 0o777)", cwd=ROOT, NUMBA_CACHE_DIR=""
    ).stdout.split()
    assert int(mode) == 0o700  # its files are executed
    assert not Path(folder).exists()  # removed at the end of the process


def test_every_entry_of_the_registry_exists() -> None:
    for kind, table in registry.TABLE.items():
        for name, entry in table.items():
            for path in (entry.implementation, entry.config):
                module, _, attribute = path.partition(":")
                if module.startswith("threedgen."):
                    assert hasattr(__import__(module, fromlist=["_"]), attribute), f"{kind} {name}: no {path}"
            if kind not in (
                "task",
                "plan",
                "memory",
                "regulariser",
                "prompt-reader",
                "room",
                "exporter",
            ):  # without a section
                assert "name" in registry.config_model(kind, name).model_fields


def test_the_pins_cover_what_is_required() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    assert not declared()[""] - pinned
    assert "torch==2.13.0" in lines


DISTRIBUTIONS = {
    "PIL": "pillow", "cv2": "opencv-python-headless", "lightning_fabric": "pytorch-lightning", "pxr": "usd-core",
    "pydantic_core": "pydantic", "skimage": "scikit-image", "yaml": "pyyaml",
}  # fmt: skip
"""Import names that are not those of the packages."""
ON_NO_INDEX = {"nvdiffrast", "tinycudann"}
USED_BY_LIBRARIES = {"onnxruntime", "peft", "protobuf", "sentencepiece", "tensorboard", "wandb", "xformers"}
"""Packages that transformers, diffusers and Lightning import where we ask them to."""


def declared() -> dict[str, set[str]]:
    """Normalised names of the packages in setup.py: those that are always installed (""), and by extra."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    call = next(node for node in calls if getattr(node.func, "id", "") == "setup")
    given = {word.arg: word.value for word in call.keywords}
    groups = {"": ast.literal_eval(given["install_requires"]), **ast.literal_eval(given["extras_require"])}
    return {group: {re.split(r"[<>=]", name)[0].lower() for name in names} for group, names in groups.items()}


def imported() -> set[str]:
    """The packages that product code imports, at the top or when a function is called."""
    found = set()
    for path in (path for room in ("threedgen", "guidance", "representations") for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(str(node.module).split(".")[0])
    foreign = found - set(sys.stdlib_module_names) - {"threedgen", "guidance", "representations"}
    return {DISTRIBUTIONS.get(name, name).replace("_", "-").lower() for name in foreign}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    groups, used = declared(), imported()
    product = set().union(*(names for group, names in groups.items() if group not in ("dev", "docs", "weights")))
    assert used - product == ON_NO_INDEX
    assert product - used == USED_BY_LIBRARIES


@pytest.fixture
def make(tmp_path: Path) -> str:
    """Program make, for a folder with a copy of the Makefile."""
    found = shutil.which("make")
    if found is None:
        pytest.skip("no make here")
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("setup.py", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text("")
    return found


def test_only_make_test_installs_the_packages_of_developers(make: str, tmp_path: Path) -> None:
    for target, extra in (("demo", 0), ("test", 1), ("lint", 1), ("types", 1)):
        done = subprocess.run([make, "-n", target], cwd=tmp_path, check=True, capture_output=True, text=True)
        assert (done.stdout.count("-e . "), done.stdout.count('-e ".[dev]"')) == (1, extra), done.stdout


def test_make_gives_the_prompt_as_it_was_typed(make: str, tmp_path: Path) -> None:
    fake = tmp_path / ".venv" / "bin" / "python"
    fake.parent.mkdir(parents=True)
    fake.write_text('#!/bin/sh\nfor word; do printf "%s\\0" "$word"; done > seen\n')
    fake.chmod(0o755)
    (tmp_path / ".venv" / "installed").write_text("")
    for prompt in ('a "blue" dog\'s $HOME $(rm -rf x) `id`; #1 \\ %', "two\nlines 🐶", "$$", "a=b, *c ${d}"):
        subprocess.run([make, "demo", f"PROMPT={prompt}", "ARGS=seed=3"], cwd=tmp_path, check=True)
        words = (tmp_path / "seen").read_bytes().decode().split("\0")[:-1]
        assert words == ["launch.py", "--config", "mvdream-toybox.yaml", f"prompt={prompt}", "seed=3"]
    subprocess.run([make, "demo"], cwd=tmp_path, check=True)
    assert b"prompt=a red penguin\0" in (tmp_path / "seen").read_bytes()


FROM_FIRST_WHEEL = (
    ("--config", "mvdream-toybox", "prompt=a red car"),
    ("--config", "quick-toybox", "prompt=a red car"),
    ("--config", "quick-toybox", f"image={ROOT / 'docs/studio.png'}"),
)
"""Commands whose weights are in the wheel threedgen; the wheel threedgen_weights has those of the others."""


@pytest.mark.slow
def test_wheels_hold_everything_and_run_alone(tmp_path: Path) -> None:
    """Built from a copy, so that no build/ of the checkout leaks into them, and unpacked into a bare folder."""
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(
        ".git", ".venv", "build", "dist", "outputs", "*.egg-info", "__pycache__", ".*_cache"
    )
    shutil.copytree(ROOT, source, ignore=ignored)
    files = {path for path in source.rglob("*") if path.is_file()}  # before the builds leave some
    folders = [str(source), str(source / "weights")]
    build = python("-m", "pip", "wheel", "--no-deps", "-q", "-w", str(tmp_path / "wheels"), *folders, cwd=tmp_path)
    assert build.returncode == 0, build.stderr
    site = tmp_path / "site"
    names: list[str] = []
    for distribution in ("threedgen", "threedgen_weights"):
        (wheel,) = (tmp_path / "wheels").glob(f"{distribution}-*.whl")
        assert wheel.stat().st_size < 100e6
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
            names += archive.namelist()
        words = ("-m", "threedgen", "--config", "sds-toybox", "prompt=a red car", "--dry-run")
        done = python(*words, cwd=tmp_path, PYTHONPATH=str(site))
        assert done.returncode == (2 if distribution == "threedgen" else 0), done.stderr
        assert ("threedgen[weights]" in done.stderr) == (distribution == "threedgen")
        for words in FROM_FIRST_WHEEL if distribution == "threedgen" else ():
            done = python("-m", "threedgen", *words, "--dry-run", cwd=tmp_path, PYTHONPATH=str(site))
            assert done.returncode == 0 and "not on this machine" not in done.stdout, (words, done.stdout, done.stderr)
    assert len(names) == len(set(names))
    (extra,) = re.findall(r'"(threedgen-weights.*)"', (ROOT / "setup.py").read_text(encoding="utf-8"))
    assert Requirement(extra).specifier.contains(wheel.name.split("-")[1])
    assert sorted(path.name for path in site.iterdir() if not path.name.endswith(".dist-info")) == ["threedgen"]
    for folder in ("guidance", "representations", "configs", "weights"):
        suffixes = (".py",) if folder in ("guidance", "representations") else (".yaml", ".json", ".safetensors", "")
        for path in files:
            if source / folder in path.parents and path.suffix in suffixes:
                assert (site / "threedgen" / path.relative_to(source)).is_file(), path
    for path in (ROOT / "threedgen").rglob("*"):
        if path.is_file() and path.suffix in (".py", ".typed", ".js", ".css", ".html"):
            assert (site / path.relative_to(ROOT)).is_file(), path
    code = (
        "import threedgen, threedgen.guidance.options, threedgen.representations.options\n"
        "from threedgen import config; print(threedgen.folder('configs')); print(config.shipped())\n"
        "from threedgen.config.command import command; print(command('--list'))"
    )
    done = python("-c", code, cwd=tmp_path, PYTHONPATH=str(site))
    place, _, named = done.stdout.splitlines()
    assert place == str(site / "threedgen" / "configs") and named == "threedgen --list", done.stderr
