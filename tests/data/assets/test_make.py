"""Meshes with captions become shards: what is left out is said, a stop loses nothing, others can read the result."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.asset_folder import GOOD, add_animated, add_bad, captions, make_assets, shows
from threedgen import cli
from threedgen.config import ConfigError, load
from threedgen.data.assets import make as rendering
from threedgen.data.assets.drawing import ANIMATED, PLAIN, cameras, read_asset
from threedgen.data.assets.listing import Asset, list_assets
from threedgen.data.assets.options import ViewsConfig
from threedgen.data.assets.shards import Shards, Writer

ROOT = Path(__file__).parents[3]
TINY = ["views.size=16", "views.azimuths=4", "engine=here", "threads=1", "out=run", "-q"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_assets(tmp_path / "assets")


def command(*more: str) -> int:
    return cli.main(["--config", "make-asset-views", "data=assets", *TINY, *more])


def rows(run: str = "run") -> dict[str, dict[str, str]]:
    return {row["file"]: row for row in csv.DictReader((Path(run) / "assets.csv").open())}


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


# --- what is read ------------------------------------------------------------------------------------------------


def test_good_assets_are_rendered_and_the_others_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_bad(folder)
    assert command() == 0
    assert capsys.readouterr().out.strip() == "run/sheet.png"
    found = rows()
    assert {file for file, row in found.items() if row["state"] == "rendered"} == set(GOOD)
    assert found["ball.obj"]["said"] == PLAIN and found["box.glb"]["said"] == ""
    assert found["broken.glb"]["said"].startswith("it cannot be read as a mesh: ")
    assert found["empty.ply"]["said"] == "it is empty: it has no triangle with an area"
    assert found["enormous.ply"]["said"] == "it has 6,000,000 triangles, and 5,000,000 are the most: simplify it first"
    assert found["silent.glb"]["said"] == "it has no caption in captions.csv"
    said = {file: row["said"] for file, row in found.items() if file.startswith("captions.csv, line")}
    assert list(said.values()) == [
        "'lost.glb': there is no such mesh; did you mean 'silent.glb'?",
        "'silent.glb': its caption is empty",
        "'box.glb': it has a caption already",
    ]
    summary = json.loads(Path("run/summary.json").read_text())
    assert (summary["assets"], summary["left_out"], summary["views"]) == (3, 7, 12)
    assert summary["files"] == ["sheet.png", "assets.csv", "views"]
    assert Image.open("run/sheet.png").width > 96 * 4 * 3


def test_the_first_pose_of_what_moves_is_taken_which_is_said(folder: Path) -> None:
    add_animated(folder)
    assert command() == 0 and rows()["moving.gltf"] == {"file": "moving.gltf", "state": "rendered", "said": ANIMATED}


def test_captions_in_many_forms(folder: Path) -> None:
    (folder / "captions.csv").write_text('\ufeffcaption,file,turn\n"a box, red",box.glb,90\n')
    assert list_assets(folder, "captions.csv").assets == (Asset("box.glb", "a box, red", "y", 90.0),)
    (folder / "captions.csv").write_text("box.glb,a box,Z\nball.obj,a ball,x\nsub/plate.ply,a plate,,north\n")
    found = list_assets(folder, "captions.csv")
    assert found.assets == (Asset("box.glb", "a box", "z"),)
    assert "up should be y or z (got 'x')" in found.left_out["captions.csv, line 2"]
    assert "turn should be degrees from -360 to 360 (got 'north')" in found.left_out["captions.csv, line 3"]


def test_a_turned_asset_shows_another_side(folder: Path) -> None:
    """The box is 3 deep (z of the file, our x), 2 high and 1 wide: turned by a quarter it is 3 wide."""
    captions(folder, {"box.glb": "a box"})
    for turn, wide in ((0, 1), (90, 3)):
        corners = read_asset(folder, Asset("box.glb", "", "y", turn)).mesh.corners
        size = np.ptp(corners.reshape(-1, 3), axis=0)
        assert size[1] / size[2] == pytest.approx(wide / 2, rel=1e-5)
        assert np.linalg.norm(corners, axis=-1).max() == pytest.approx(0.85, rel=1e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data=nowhere"], "data: should be a folder with meshes (got 'nowhere')"),
        (["captions=other.csv"], "captions: there is no file 'other.csv', neither here nor in assets"),
        (["data="], "data: is missing; say which folder, such as data=assets"),
        (["address=auto"], "address belongs to engine=ray"),
    ],
)
def test_mistakes_are_found_at_once(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*words) == 2 and said in capsys.readouterr().err and not Path("run").exists()


def test_a_folder_of_which_nothing_can_be_rendered(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "broken.glb").write_bytes(b"glTF")
    captions(folder, {"broken.glb": "a thing"})
    assert command() == 2
    error = capsys.readouterr().err
    assert "none of the meshes in assets can be rendered" in error and error.strip().count("\n") < 6


# --- what is written ---------------------------------------------------------------------------------------------


def test_a_shard_is_what_webdataset_reads(folder: Path) -> None:
    """A tar file; what belongs together stands together and has one name up to its first dot."""
    assert command("views.rings=2") == 0
    found = members(Path("run/views/shard-00000.tar"))
    keys = [name.partition(".")[0] for name in found]
    assert len(found) == 3 * (1 + 8) and keys == sorted(keys) and len(set(keys)) == 3
    facts = json.loads(found[f"{keys[0]}.json"])
    assert (facts["file"], facts["caption"], facts["azimuths"]) == ("ball.obj", "a grey ball", 4)
    at = cameras(ViewsConfig(size=16, azimuths=4, rings=2), 0, keys[0])
    assert np.allclose(facts["c2w"], at.c2w) and np.allclose(facts["fov"], at.fov)
    picture = np.asarray(Image.open(io.BytesIO(found[f"{keys[0]}.v05.png"]))) / 255
    assert picture.shape == (16, 16, 4) and 0.3 < shows(picture) < 0.8
    index = json.loads(Path("run/views/index.json").read_text())
    assert index["shards"][0]["bytes"] == Path("run/views/shard-00000.tar").stat().st_size


def test_cameras_are_those_of_the_paper() -> None:
    options = ViewsConfig(rings=16, azimuths=8)
    at = cameras(options, 0, "a")
    fov, place = np.rad2deg(at.fov.numpy()), at.position.numpy()
    distance, height = np.linalg.norm(place, axis=1), np.rad2deg(np.arcsin(place[:, 2] / np.linalg.norm(place, axis=1)))
    near = distance * np.tan(np.deg2rad(fov / 2))
    assert 15 <= fov.min() < 25 and 50 < fov.max() <= 60.001 and len(np.unique(fov.round(3))) == 16
    assert -1e-4 <= height.min() < 5 and 25 < height.max() < 30.001 and 0.899 < near.min() < near.max() < 1.101
    azimuth = np.rad2deg(np.arctan2(place[:8, 1], place[:8, 0])) % 360
    assert np.allclose(azimuth, np.arange(8) * 45, atol=1e-3)
    assert not np.allclose(cameras(options, 0, "b").fov, at.fov) and np.allclose(cameras(options, 0, "a").fov, at.fov)


def test_colours_on_any_ground_are_those_of_a_render_on_it(folder: Path) -> None:
    mesh = read_asset(folder, Asset("box.glb", "")).mesh
    at = cameras(ViewsConfig(size=24, azimuths=4), 0, "a")
    cut, grey = mesh.photograph(at, None, True), mesh.photograph(at, 0.25, True)
    assert np.allclose(cut[..., :3] * cut[..., 3:] + 0.25 * (1 - cut[..., 3:]), grey, atol=1e-5)


# --- stops -------------------------------------------------------------------------------------------------------


def shard_bytes() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path("run/views").glob("*.tar"))}


def test_a_killed_run_goes_on_and_makes_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("views.per_shard=1") == 0
    expected, index = shard_bytes(), Path("run/views/index.json").read_bytes()
    assert len(expected) == 3
    for path in Path("run/views").glob("shard-00001.*"):
        path.unlink()
    Path("run/views/index.json").unlink()
    Path("run/views/shard-00001.tar.77.threedgen.tmp").write_bytes(b"half")
    drawn = list[str]()
    real = rendering.make_shard
    monkeypatch.setattr(rendering, "make_shard", lambda job, **rest: (drawn.append(job.name), real(job, **rest))[1])
    assert command("views.per_shard=1") == 0
    assert drawn == ["shard-00001"] and shard_bytes() == expected
    assert Path("run/views/index.json").read_bytes() == index and not list(Path("run").rglob("*.tmp"))


def test_a_shard_that_is_cut_short_is_known_and_made_again() -> None:
    assert command() == 0
    path, expected = Path("run/views/shard-00000.tar"), shard_bytes()
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ConfigError, match=r"shard-00000.tar is missing or cut short: render it again") as caught:
        Shards(Path("run/views"))
    assert "\n" not in str(caught.value)
    assert command() == 0 and shard_bytes() == expected


def test_an_asset_that_was_edited_is_rendered_anew(folder: Path) -> None:
    assert command("views.per_shard=1") == 0
    before = shard_bytes()
    captions(folder, GOOD | {"box.glb": "a crimson box"})
    assert command("views.per_shard=1") == 0
    assert [name for name, data in shard_bytes().items() if data != before[name]] == ["shard-00001.tar"]
    captions(folder, {"box.glb": "a crimson box"})
    assert command("views.per_shard=1") == 0 and len(shard_bytes()) == 1


def test_a_full_disk_is_one_sentence_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add, calls = Writer.add, [0]

    def full(self: Writer, name: str, data: bytes) -> None:
        calls[0] += 1
        if calls[0] > 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        add(self, name, data)

    monkeypatch.setattr(Writer, "add", full)
    assert command("views.per_shard=1") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "could not be written (No space left on device)" in error and "it goes on with the shards" in error
    assert list(shard_bytes()) == ["shard-00000.tar"] and not list(Path("run").rglob("*.tmp"))
    monkeypatch.setattr(Writer, "add", add)
    assert command("views.per_shard=1") == 0 and len(shard_bytes()) == 3


def test_an_asset_that_ends_the_process_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be foreseen, such as a lack of memory, costs one asset and not its shard."""
    real = rendering.read_asset

    def read(folder: Path, asset: Asset) -> Any:
        if asset.file == "box.glb":
            raise RuntimeError("it burst")
        return real(folder, asset)

    monkeypatch.setattr(rendering, "read_asset", read)
    assert command("attempts=2") == 0
    found = rows()
    assert found["box.glb"] == {
        "file": "box.glb", "state": "left out", "said": "it cannot be rendered (RuntimeError: it burst)"
    }  # fmt: skip
    assert {file for file, row in found.items() if row["state"] == "rendered"} == set(GOOD) - {"box.glb"}


@pytest.mark.slow
def test_two_workers_of_which_all_are_killed_leave_the_same(folder: Path) -> None:
    """SIGKILL to the whole crew in the middle; the next start makes what is missing."""
    words = ["data=assets", "views.size=16", "views.azimuths=4", "views.per_shard=1", "threads=1", "-q"]
    assert cli.main(["--config", "make-asset-views", *words, "out=run", "engine=here"]) == 0
    make_assets(Path("many"), more=20)
    words[0] = "data=many"
    assert cli.main(["--config", "make-asset-views", *words, "out=undisturbed", "engine=here"]) == 0
    main = [sys.executable, str(ROOT / "launch.py"), "--config", "make-asset-views", *words, "out=killed", "workers=2"]
    process = subprocess.Popen(main)
    while len(list(Path("killed").glob("views/*.json"))) < 3:
        assert process.poll() is None, "it was over already"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1)
    kept = {path.name: path.stat().st_mtime_ns for path in Path("killed/views").glob("*.json")}
    assert 3 <= len(kept) < 23
    assert subprocess.run(main).returncode == 0
    assert all((Path("killed/views") / name).stat().st_mtime_ns == time_ for name, time_ in kept.items())
    for path in Path("undisturbed/views").glob("*.tar"):
        assert (Path("killed/views") / path.name).read_bytes() == path.read_bytes()


def test_the_config_of_the_task_is_whole() -> None:
    config = load("make-asset-views", ["data=assets"])
    assert (config.views.azimuths, config.views.fov, config.views.elevation) == (32, (15.0, 60.0), (0.0, 30.0))
