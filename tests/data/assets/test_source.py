import json
import shutil
import tarfile
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.asset_folder import captions, make_assets
from tests.support.errors import refused
from threedgen.config import load
from threedgen.data.assets.make import render
from threedgen.data.assets.shards import Shards
from threedgen.data.assets.source import AssetViews, CaptionedImages, split
from threedgen.geometry.images import write_png


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    folder = tmp_path_factory.mktemp("shards")
    make_assets(folder / "assets", more=3)
    views = ["views.size=16", "views.azimuths=8", "views.rings=2", "views.per_shard=4"]
    words = [f"data={folder / 'assets'}", *views, "engine=here", "threads=1"]
    return render(load("make-asset-views", words), folder, quiet=True)


def views(shards: Shards, n_view: int = 4, seed: int = 0) -> AssetViews:
    return AssetViews(shards, shards.entries, seed, n_view)


def test_entries_are_views_of_one_ring_and_the_same_in_every_block(shards: Shards) -> None:
    source = views(shards)
    whole, part = source.render_examples(range(0, 12), 16), source.render_examples(range(7, 9), 16)
    assert whole.rgb.shape == (48, 16, 16, 3) and whole.rgb.dtype == np.float32 and whole.c2w.shape == (48, 4, 4)
    assert np.array_equal(whole.rgb[28:36], part.rgb) and np.array_equal(whole.c2w[28:36], part.c2w)
    assert whole.captions[:6] == whole.captions[6:] == [entry.caption for entry in shards.entries]
    position = whole.c2w[:, :3, 3].reshape(12, 4, 3)
    assert np.allclose(np.ptp(np.linalg.norm(position, axis=-1), axis=1), 0, atol=1e-5)
    assert np.allclose(np.ptp(position[..., 2], axis=1), 0, atol=1e-5)
    azimuths = np.rad2deg(np.unwrap(np.arctan2(position[..., 1], position[..., 0])))
    assert np.allclose(np.diff(azimuths, axis=1) % 360, 90, atol=1e-2)
    assert len({round(float(azimuth[0]), 1) for azimuth in azimuths}) > 3, "always the same sides"


def test_images_fit_their_cameras_and_have_random_greys(shards: Shards) -> None:
    source = views(shards)
    block = source.render_examples(range(6), 16)
    corners = block.rgb[::4, 0, 0, 0]
    assert 0.39 < corners.min() < corners.max() < 0.61 and len(np.unique(corners.round(4))) > 3
    red = block.rgb.reshape(6, 4, 16, 16, 3)[[entry.file for entry in shards.entries].index("box.glb")]
    middle = red[:, 6:10, 6:10].mean((0, 1, 2))
    assert middle[0] > 2 * middle[1], "the red box is not red"
    numbers, _ = source.sample(0)
    assert np.allclose(block.c2w[:4], np.asarray(shards.metadata(shards.entries[0])["c2w"])[numbers])


def test_split_separates_training_and_held_out_assets(shards: Shards) -> None:
    held_out, train = split(shards, 2, "held-out"), split(shards, 2, "train")
    assert len(held_out) == 2 and len(train) == 4 and {*held_out, *train} == set(shards.entries)
    with refused("held_out"):
        AssetViews(shards, split(shards, 6, "train"), 0, 4)


@pytest.mark.parametrize(("rings", "n_view"), [(1, 3), (2, 8)])
def test_other_views_are_different_renders(shards: Shards, rings: int, n_view: int) -> None:
    ring = copy(shards)
    ring.rings = rings
    one, two = (AssetViews(ring, ring.entries, 0, n_view, other) for other in (False, True))
    for index in range(8):
        (numbers, grey), (others, other_grey) = one.sample(index), two.sample(index)
        assert len({*numbers, *others}) == 2 * n_view and grey != other_grey


def test_description_differs_with_every_option(shards: Shards) -> None:
    sources = [views(shards), views(shards, 1), views(shards, 4, 1), AssetViews(shards, shards.entries[:3], 0, 4)]
    sources.append(AssetViews(shards, shards.entries, 0, 4, other=True))
    assert len({source.describe() for source in sources}) == 5


# --- image folders -----------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path) -> Path:
    wide: Any = np.full((10, 30, 3), 0.2)
    wide[:, 10:20] = (1.0, 0, 0)
    write_png(tmp_path / "wide.png", wide)
    write_png(tmp_path / "grey.png", np.full((8, 8, 3), 0.5))
    captions(tmp_path, {"wide.png": "a red square", "grey.png": "nothing"})
    return tmp_path


def test_image_folder_is_cropped_to_middle_squares(images: Path) -> None:
    source = CaptionedImages(images)
    block = source.render_examples(range(3), 8)
    assert source.n_view == 1 and block.captions == ["a red square", "nothing", "a red square"]
    assert block.rgb.shape == (3, 8, 8, 3) and block.c2w.shape == (3, 4, 4)
    assert np.allclose(block.rgb[0], (1, 0, 0)) and np.allclose(block.rgb[1], 0.5, atol=0.01)


def test_unreadable_images_are_skipped_with_a_warning(images: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = CaptionedImages(images).describe()
    captions(images, {"wide.png": "a red square", ".\\grey.png": "nothing"})
    assert CaptionedImages(images).describe() != before and len(CaptionedImages(images).pairs) == 2
    whole = (images / "grey.png").read_bytes()
    (images / "grey.png").write_bytes(whole[: len(whole) // 2])  # its header is intact
    source = CaptionedImages(images)
    assert len(source.pairs) == 1 and source.describe() != before
    assert "captions.csv, line 3" in caplog.text and "grey.png" in caplog.text
    (images / "wide.png").unlink()
    with refused("pictures", images / "captions.csv"):
        CaptionedImages(images)
    (images / "captions.csv").unlink()
    with refused("captions", images):
        CaptionedImages(images)


@pytest.mark.parametrize("damage", ["negative size", "huge size", "sparse"])
def test_damaged_members_of_shards_are_named(shards: Shards, tmp_path: Path, damage: str) -> None:
    entry = shards.entries[0]
    path = Path(shutil.copytree(shards.folder, tmp_path / "views")) / entry.shard
    with tarfile.open(path) as tar:
        member = tar.getmember(f"{entry.name}.json")
    data = bytearray(path.read_bytes())
    header = memoryview(data)[member.offset : member.offset + 512]
    if damage == "negative size":  # in base 256: Python's tarfile goes back to the same member for ever
        header[124:136] = b"\xff" * 10 + b"\xfe\x00"
    elif damage == "huge size":  # tarfile reads any number of bytes
        header[124:136] = b"\x80" + b"\xff" * 11
    else:
        header[156:157], header[257:265], header[345:512] = tarfile.GNUTYPE_SPARSE, b"ustar  \0", bytes(167)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(data)
    with refused(None, path, f"{entry.name}.json"):
        Shards(path.parent).metadata(entry)


@pytest.mark.parametrize(("name", "shown"), [([0] * 1000, "index.json"), ("\x1b[31m", r"\x1b[31m")])
def test_names_in_the_index_of_shards_are_texts(shards: Shards, tmp_path: Path, name: object, shown: str) -> None:
    shutil.copytree(shards.folder, tmp_path / "views")
    index = tmp_path / "views" / "index.json"
    tree = json.loads(index.read_text())
    tree["shards"][0]["assets"][0]["name"] = name
    index.write_text(json.dumps(tree))
    with refused(None, shown) as caught:
        found = Shards(tmp_path / "views")
        found.metadata(found.entries[0])
    assert str(caught.value).isprintable()


def test_shards_have_a_limit_of_files(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, fresh = shards.entries[-1], Shards(shards.folder)
    monkeypatch.setattr("threedgen.data.assets.shards.MAX_MEMBERS", 2)
    with refused(None, shards.folder / entry.shard):
        fresh.metadata(entry)
