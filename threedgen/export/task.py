"""Task "export": write a game-ready asset from a run's checkpoint."""

import hashlib
import io
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch

from threedgen import __version__
from threedgen.config import ConfigError, config_hash, load, plain, registry
from threedgen.config.errors import short
from threedgen.run import folder as runs
from threedgen.run.disk import Tree, prepare, write_json, writing
from threedgen.run.metrics import read_summary
from threedgen.run.progress import ProgressDisplay
from threedgen.run.text import number, say
from threedgen.run.threads import set_threads

from .asset import STEPS, ExportedAsset, make_asset
from .asset_folder import FOLDER, asset_name, check_overwrite, read_manifest, write_files
from .options import AssetConfig, ExportConfig, material_of, resize_command
from .run_field import RunField, load_run_field
from .shape.from_field import dense_surface

logger = logging.getLogger(__name__)


def run(config: ExportConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Run the task `export`: write the asset, and print its height, its files and the folder. Return exit code 0.

    `quiet`: print only the folder. `resume` is ignored; it exists because all tasks have this argument.
    """
    set_threads(None)
    folder, out, options = runs.run_folder(config.run, "run"), config.destination(), config.asset()
    prepare(out, megabytes=64)
    earlier = read_manifest(out).get("name")
    source = load_run_field(folder, "cuda" if torch.cuda.is_available() else "cpu")
    asset = export(source, options, out, quiet=quiet, run_name=config.run_name())
    notes = list(asset.notes)
    if earlier not in (None, asset.name):
        notes.append(f"this asset has replaced that of the name {short(earlier)}. Set another out to keep both")
    for note in notes:
        logger.warning("%s", note)
    if out.resolve() == (folder / FOLDER).resolve():
        update_summary(folder, asset)
        update_report(folder)
    if not quiet:
        say(asset.figures.get("height") or f"{number(asset.figures['size_m']['high'])} m high")
        if "height" in asset.figures:
            say(f"another height: {resize_command(folder, config.out)}")
        say("\n".join(f"{name}  {len(data) / 1024:.0f} KB" for name, data in asset.files.items()))
        if "khronos" in asset.figures:
            say(f"Khronos validator: {asset.figures['khronos']}")
    say(str(out))
    return 0


@contextmanager
def progress_bar(quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Create a context manager that shows a progress bar, unless `quiet` is True.

    The context yields a callback, to be called with the name of each export step, such as "bake", when the step starts.
    """
    with ProgressDisplay("asset", len(STEPS), quiet) as count:

        def on_step(step: str) -> None:
            count.stage = f"asset: {step}"
            count.show(max(count.done, STEPS.index(step)), details=list)  # no estimate of the time left

        yield on_step
        count.show(count.total)


def export(
    source: RunField,
    config: AssetConfig,
    folder: Path,
    nearest_budget: bool = False,
    quiet: bool = False,
    run_name: str | None = None,
) -> ExportedAsset:
    """Extract the surface of a run's field, build a game asset from it, write the asset to `folder` and return it.

    If `config.height` is unset, the asset gets the usual height of the first object in the prompt whose height is
    known, such as 0.5 m for a dog; without such an object, one world unit is one metre. If `config.material` is unset,
    the words of the prompt determine the material.

    Args:
        source: trained field (3D representation) of the run, with the run's config and number of steps.
        config: options of the asset, such as height and triangle budget.
        folder: folder for the files of the asset.
        nearest_budget: what to do if the shape needs more triangles than the budget. True: use as few as possible and
            add a note to `notes` of the result; False: raise ConfigError.
        quiet: show no progress bar.
        run_name: name of the run for asset.json. The asset of a run with another name in `folder` is then an error, not
            replaced. None: no name.
    """
    run, options, usual = source.config, config, source.config.usual_height()
    extras = {"prompt": run.prompt, "negative_prompt": run.negative_prompt, "seed": run.seed, "steps": source.steps}
    extras |= {"config_hash": config_hash(run), "version": __version__}
    if config.height is None and usual is not None:
        config = config.model_copy(update={"height": usual[1]})
    if config.material is None:
        config = config.model_copy(update={"material": material_of(run.prompt)})
    with progress_bar(quiet) as on_step:
        on_step("surface")
        start = time.perf_counter()
        dense, notes = dense_surface(source.view, config.sizes.resolution)
        duration = time.perf_counter() - start
        if source.steps < run.trainer.max_steps:
            notes.append(f"the run is not finished: {source.steps} of {run.trainer.max_steps} steps")
        name = asset_name(config.name or run.prompt)
        asset = make_asset(dense, config, name, source.view, extras, nearest_budget, on_step)
        asset.seconds = {"surface": round(duration, 3)} | asset.seconds
        asset.notes = notes + asset.notes
        if options.height is None:
            reason = f"as {usual[0]} usually is" if usual else "as one field unit is one metre"
            asset.figures["height"] = f"{number(asset.figures['size_m']['high'])} m high, {reason}"
        save(asset, folder, options, run_name)
    return asset


def save(asset: ExportedAsset, folder: Path, config: AssetConfig, run_name: str | None = None) -> None:
    """Write an asset's files and its description asset.json to `folder`, in place of those of an earlier export.

    Raises ConfigError if this would overwrite a file that is not from an export, or that was changed after it, or the
    asset of a run with another name than `run_name`.
    """
    with writing(folder):
        check_overwrite(folder, asset.files, run_name)
        write_files(folder, asset.files, summary(asset, config) | ({"run": run_name} if run_name else {}))


def summary_entry(asset: ExportedAsset) -> Tree:
    """Return the JSON object that describes the asset in a run's summary.json.

    "file" is the path of the main file (the GLB of the finest level of detail, if there are GLBs) relative to the run
    folder, "levels" the number of triangles of each level of detail, "seconds" the duration of the export, and "height"
    a text with the height and the reason for it: "0.5 m high, as a dog usually is" ("" if the user set the height).
    """
    return {
        "file": f"{FOLDER}/{next(iter(asset.files))}",
        "levels": asset.figures["levels"],
        "height": asset.figures.get("height", ""),
        "seconds": round(sum(asset.seconds.values()), 2),
    }


def update_summary(run: Path, asset: ExportedAsset) -> None:
    """Update summary.json in the run folder `run` after an export; without this file, do nothing.

    The entry "asset" is replaced, and so are the paths and notes of the asset in the lists "files" and "notes".
    """
    old = read_summary(run)
    if not old:
        return
    entry = summary_entry(asset)

    def others(key: str) -> list[object]:
        value = old.get(key)
        entries = value if isinstance(value, list) else []
        return [item for item in entries if not str(item).startswith((f"{FOLDER}/", "asset: ", "no asset: "))]

    with writing(run / runs.SUMMARY):
        notes = [*others("notes"), *(f"asset: {text}" for text in asset.notes)]
        files = [*others("files"), entry["file"]]
        write_json(run / runs.SUMMARY, old | {"files": files, "notes": notes, "asset": entry})


def update_report(run: Path) -> None:
    """Write the report page in the run folder `run` again; without a page, do nothing. Problems are logged."""
    page = run / "report.html"
    if not page.exists():
        return
    try:
        with redirect_stdout(io.StringIO()):  # the task prints the path of the page
            registry.implementation("task", "report")(load("report", values={"run": str(run)}))
    except ConfigError as error:
        logger.warning("%s still shows the earlier asset: %s", page, error)


def summary(asset: ExportedAsset, config: AssetConfig) -> Tree:
    """Return the content of asset.json.

    It has the name, the version of threedgen, the options of the export (defaults of the next one), the preset (the
    named set of asset sizes, such as "prop"), the texture size, statistics of the mesh, sizes and SHA-256 of the files,
    findings of the Khronos glTF validator, notes for the user, and durations in seconds.
    """
    return {
        "name": asset.name,
        "version": __version__,
        "options": plain(config),
        "preset": config.preset,
        "texture": config.sizes.texture,
        **asset.figures,
        "files": {name: len(data) for name, data in asset.files.items()},
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in asset.files.items()},
        "findings": asset.findings,
        "notes": asset.notes,
        "seconds": asset.seconds,
    }
