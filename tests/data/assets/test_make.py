import csv
import io
import json
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import trimesh
from PIL import Image

from tests.support.asset_folder import GOOD, add_bad, captions, make_assets, shows
from tests.support.errors import refused
from threedgen import cli
from threedgen.data.assets import make as rendering
from threedgen.data.assets.listing import Asset, list_assets
from threedgen.data.assets.make import cameras, read_asset
from threedgen.data.assets.options import ViewsConfig
from threedgen.data.assets.shards import Shards
from threedgen.data.options import MeshFolderConfig
from threedgen.evaluation.janus.options import asset_files
from threedgen.geometry.images import write_png

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


# --- input -------------------------------------------------------------------------------------------------------


def test_good_assets_are_rendered_and_others_listed_with_reasons(folder: Path, capsys) -> None:
    add_bad(folder)
    assert command() == 0
    assert capsys.readouterr().out.strip() == "run/sheet.png"
    found = rows()
    assert {file for file, row in found.items() if row["state"] == "rendered"} == set(GOOD)
    assert found["ball.obj"]["note"] == rendering.PLAIN and found["box.glb"]["note"] == ""
    assert all(found[file]["note"] for file in ("broken.glb", "empty.ply", "enormous.ply"))
    assert "captions.csv" in found["silent.glb"]["note"]
    lines = [row["note"] for file, row in found.items() if file.startswith("captions.csv, line")]
    assert [line.partition(":")[0] for line in lines] == ["'lost.glb'", "'silent.glb'", "'box.glb'"]
    assert "did you mean 'box.glb'?" in lines[0]
    summary = json.loads(Path("run/summary.json").read_text())
    assert (summary["assets"], summary["left_out"], summary["views"]) == (3, 7, 12)
    assert summary["files"] == ["sheet.png", "assets.csv", "views"]
    assert Image.open("run/sheet.png").width > 96 * 4 * 3


def test_notes_on_material_colours_and_missing_textures(folder: Path) -> None:
    red = trimesh.visual.material.PBRMaterial(baseColorFactor=[200, 0, 0, 255])
    box = trimesh.creation.box((1, 1, 1))
    box.visual = trimesh.visual.TextureVisuals(material=red)
    box.export(folder / "red.glb")
    (folder / "lost.mtl").write_text("newmtl m\nmap_Kd gone.png\n")
    face = "vt 0 0\nf 1/1 2/1 3/1\n"
    (folder / "lost.obj").write_text("mtllib lost.mtl\nusemtl m\n" + (folder / "ball.obj").read_text() + face)
    captions(folder, dict.fromkeys(("red.glb", "lost.obj"), "a"))
    assert command("views.per_shard=1") == 0
    note = {file: row["note"] for file, row in rows().items()}
    assert note["red.glb"] == "" and "gone.png" in note["lost.obj"] and rendering.PLAIN not in note["lost.obj"]
    before = shard_bytes()
    (folder / "textures").mkdir()
    write_png(folder / "textures" / "gone.png", np.full((4, 4, 3), 0.5))
    assert command("views.per_shard=1") == 0 and "gone.png" not in rows()["lost.obj"]["note"]
    assert len([name for name, data in shard_bytes().items() if data != before[name]]) == 1


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('\ufeffcaption,file,turn\n"a box, red",box.glb,90\n', {Asset("box.glb", "a box, red", "y", 90.0)}),
        # without a header; x is no up axis and north is no angle
        ("box.glb,a box,Z\nball.obj,a ball,x\nsub/plate.ply,a plate,,north\n", {Asset("box.glb", "a box", "z")}),
        # names as file systems compare them
        ("file;caption;up;turn\nBox.GLB;a box;y;22,5\n", {Asset("box.glb", "a box", "y", 22.5)}),
        ("ka\u0308fer.obj,a beetle\nBALL.obj,a ball\n", {Asset("Käfer.obj", "a beetle"), Asset("ball.obj", "a ball")}),
        # the delimiter in the caption
        ("file,caption\nbox.glb,a red box, shiny,\nball.obj,a ball,,\n",
         {Asset("box.glb", "a red box, shiny"), Asset("ball.obj", "a ball")}),
    ],
    ids=["header", "no header", "names", "other names", "comma"],
)  # fmt: skip
def test_list_assets_reads_captions(folder: Path, text: str, found: set[Asset]) -> None:
    (folder / "Käfer.obj").write_text((folder / "ball.obj").read_text())
    (folder / "captions.csv").write_text(text)
    assert set(list_assets(folder, "captions.csv").assets) == found


def test_list_assets_prefers_the_captions_beside_the_meshes(folder: Path) -> None:
    Path("captions.csv").write_text("box.glb,a box of another folder\n")
    assert {asset.file: asset.caption for asset in list_assets(folder, "captions.csv").assets} == GOOD
    (folder / "captions.csv").unlink()
    assert [asset.caption for asset in list_assets(folder, "captions.csv").assets] == ["a box of another folder"]


@pytest.mark.parametrize(
    ("delimiter", "encoding"), [(",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-16"), (";", "cp1252")]
)
def test_list_assets_reads_the_csv_of_spreadsheets(folder: Path, delimiter: str, encoding: str) -> None:
    lines = [(f"sep={delimiter}",), ("# some, old",), ("",), ("File", "caption")]
    lines += [("sub\\plate.ply", ' "a plate, très;\r\njolie"'), ("box.glb", "a box")]
    text = "\r\n".join(delimiter.join(cells) for cells in lines)
    (folder / "captions.csv").write_bytes(text.encode(encoding))
    found = {asset.file: asset.caption for asset in list_assets(folder, "captions.csv").assets}
    assert found == {"sub/plate.ply": "a plate, très; jolie", "box.glb": "a box"}


def test_csv_with_other_columns_names_the_wanted_header(folder: Path) -> None:
    (folder / "captions.csv").write_text("sku,file,title\nAX-100,box.glb,a box\n")
    with refused("captions", "file,caption"):
        list_assets(folder, "captions.csv")


def test_meshes_in_linked_folders_are_listed_once(folder: Path) -> None:
    disk = folder.parent / "disk"
    for name in ("red", ".trash"):
        (disk / name).mkdir(parents=True)
        (disk / name / "cup.OBJ").write_text((folder / "ball.obj").read_text())
    for link, target in (("a", "sub"), ("loop.obj", "."), ("cups", disk)):
        (folder / link).symlink_to(target, target_is_directory=True)
    (disk / "back").symlink_to(folder, target_is_directory=True)
    captions(folder, GOOD | {"cups/red/cup.OBJ": "a cup"})
    found = list_assets(folder, "captions.csv")
    assert {asset.file for asset in found.assets} == {*GOOD, "cups/red/cup.OBJ"} and not found.left_out
    assert [asset.file for asset in MeshFolderConfig(path=str(folder), held_out=1).listing().assets] == [
        asset.file for asset in found.assets
    ]
    assert {path.relative_to(folder).as_posix() for path in asset_files(folder)} == {*GOOD, "cups/red/cup.OBJ"}


def test_turn_rotates_the_asset(folder: Path) -> None:
    """The box is 3 deep (z of the file, our x), 2 high and 1 wide; rotated by 90 degrees it is 3 wide."""
    captions(folder, {"box.glb": "a box"})
    for turn, wide in ((0, 1), (90, 3)):
        corners = read_asset(folder, Asset("box.glb", "", "y", turn)).corners
        size = np.ptp(corners.reshape(-1, 3), axis=0)
        assert size[1] / size[2] == pytest.approx(wide / 2, rel=1e-5)
        assert np.linalg.norm(corners, axis=-1).max() == pytest.approx(0.85, rel=1e-5)


def test_folder_without_a_usable_mesh_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "broken.glb").write_bytes(b"glTF")
    captions(folder, {"broken.glb": "a thing"})
    assert command() == 2
    error = capsys.readouterr().err
    assert "data: " in error and "broken.glb" in error and error.strip().count("\n") < 6


# --- output ------------------------------------------------------------------------------------------------------


def test_shard_has_webdataset_format(folder: Path) -> None:
    """Files of an asset are adjacent in the tar file and share a name up to the first dot."""
    assert command("views.rings=2") == 0
    with tarfile.open("run/views/shard-00000.tar") as tar:
        found = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    keys = [name.partition(".")[0] for name in found]
    assert len(found) == 3 * (1 + 8) and keys == sorted(keys) and len(set(keys)) == 3
    metadata = json.loads(found[f"{keys[0]}.json"])
    assert (metadata["file"], metadata["caption"], metadata["azimuths"]) == ("ball.obj", "a grey ball", 4)
    at = cameras(ViewsConfig(size=16, azimuths=4, rings=2), 0, keys[0])
    assert np.allclose(metadata["c2w"], at.c2w) and np.allclose(metadata["fov"], at.fov)
    image = np.asarray(Image.open(io.BytesIO(found[f"{keys[0]}.v05.png"]))) / 255
    assert image.shape == (16, 16, 4) and 0.3 < shows(image) < 0.8
    index = json.loads(Path("run/views/index.json").read_text())
    assert index["shards"][0]["bytes"] == Path("run/views/shard-00000.tar").stat().st_size


def test_cameras_have_the_ranges_of_the_config() -> None:
    options = ViewsConfig(rings=16, azimuths=8)
    at = cameras(options, 0, "a")
    fov, position = np.rad2deg(at.fov.numpy()), at.position.numpy()
    distance = np.linalg.norm(position, axis=1)
    elevation, relative = np.rad2deg(np.arcsin(position[:, 2] / distance)), distance * np.tan(np.deg2rad(fov / 2))
    assert 15 <= fov.min() < 25 and 50 < fov.max() <= 60.001 and len(np.unique(fov.round(3))) == 16
    assert -1e-4 <= elevation.min() < 5 and 25 < elevation.max() < 30.001
    assert 0.899 < relative.min() < relative.max() < 1.101
    azimuth = np.rad2deg(np.arctan2(position[:8, 1], position[:8, 0])) % 360
    assert np.allclose(azimuth, np.arange(8) * 45, atol=1e-3)
    assert not np.allclose(cameras(options, 0, "b").fov, at.fov) and np.allclose(cameras(options, 0, "a").fov, at.fov)


def test_rgba_composited_on_grey_equals_a_render_on_grey(folder: Path) -> None:
    mesh = read_asset(folder, Asset("box.glb", ""))
    at = cameras(ViewsConfig(size=24, azimuths=4), 0, "a")
    rgba, grey = mesh.render_views(at, None, True), mesh.render_views(at, 0.25, True)
    assert np.allclose(rgba[..., :3] * rgba[..., 3:] + 0.25 * (1 - rgba[..., 3:]), grey, atol=1e-5)


# --- interruptions -----------------------------------------------------------------------------------------------


def shard_bytes() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path("run/views").glob("*.tar"))}


def test_lost_and_truncated_shards_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("views.per_shard=1") == 0
    expected, index = shard_bytes(), Path("run/views/index.json").read_bytes()
    assert len(expected) == 3
    truncated = Path("run/views/shard-00000.tar")
    truncated.write_bytes(truncated.read_bytes()[:5000])
    with refused(None, truncated):
        Shards(Path("run/views"))
    for path in Path("run/views").glob("shard-00001.*"):
        path.unlink()
    Path("run/views/index.json").unlink()
    Path("run/views/shard-00001.tar.77.threedgen.tmp").write_bytes(b"half")
    make_shard = Mock(wraps=rendering.make_shard)
    monkeypatch.setattr(rendering, "make_shard", make_shard)
    assert command("views.per_shard=1") == 0 and shard_bytes() == expected
    assert [call.args[0].name for call in make_shard.call_args_list] == ["shard-00000", "shard-00001"]
    assert Path("run/views/index.json").read_bytes() == index and not list(Path("run").rglob("*.tmp"))


def test_edited_captions_renew_their_shard(folder: Path) -> None:
    assert command("views.per_shard=1") == 0
    before = shard_bytes()
    captions(folder, GOOD | {"box.glb": "a crimson box"})
    assert command("views.per_shard=1") == 0
    assert [name for name, data in shard_bytes().items() if data != before[name]] == ["shard-00001.tar"]
    captions(folder, {"box.glb": "a crimson box"})
    Path("run/sheet-2.png").touch()
    assert command("views.per_shard=1") == 0 and len(shard_bytes()) == 1
    assert not Path("run/sheet-2.png").exists(), "there are fewer assets than before"


def test_asset_that_crashes_the_worker_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        rendering, "read_asset", lambda at, asset: 1 / 0 if asset.file == "box.glb" else read_asset(at, asset)
    )
    assert command("attempts=2") == 0
    found = rows()
    assert found["box.glb"]["state"] == "left out" and "ZeroDivisionError: " in found["box.glb"]["note"]
    assert {file for file, row in found.items() if row["state"] == "rendered"} == set(GOOD) - {"box.glb"}


@pytest.mark.slow
def test_killed_workers_resume_to_the_same_shards() -> None:
    words = ["data=many", "views.size=16", "views.azimuths=4", "views.per_shard=1", "threads=1", "-q"]
    make_assets(Path("many"), more=20)
    assert cli.main(["--config", "make-asset-views", *words, "out=undisturbed", "engine=here"]) == 0
    main = [sys.executable, str(ROOT / "launch.py"), "--config", "make-asset-views", *words, "out=killed", "workers=2"]
    process = subprocess.Popen(main)
    while len(list(Path("killed").glob("views/*.json"))) < 3:
        assert process.poll() is None, "ended too early"
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


def test_edited_texture_or_material_renews_its_shard(folder: Path) -> None:
    (folder / "cone.mtl").write_text("newmtl m\nmap_Kd paint.png\n")
    (folder / "cone.obj").write_text(
        "mtllib cone.mtl\nusemtl m\nv 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nvt 0 0\n"
        "f 1/1 3/1 2/1\nf 1/1 2/1 4/1\nf 1/1 4/1 3/1\nf 2/1 3/1 4/1\n"
    )
    write_png(folder / "paint.png", np.full((4, 4, 3), 0.5))
    captions(folder, {"cone.obj": "a cone"})
    assert command() == 0 and rows()["cone.obj"]["note"] == ""
    grey = shard_bytes()
    write_png(folder / "paint.png", np.full((4, 4, 3), 0.1))
    assert command() == 0 and (dark := shard_bytes()) != grey
    (folder / "cone.mtl").write_text("newmtl m\nKd 1 0 0\n")
    assert command() == 0 and shard_bytes() != dark
    shard = Path("run/views/shard-00000.tar")
    before = shard.stat().st_mtime_ns
    assert command() == 0 and shard.stat().st_mtime_ns == before
