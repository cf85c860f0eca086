"""What is read from shards, and from a folder of pictures, to be learnt from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.asset_folder import captions, make_assets
from threedgen.config import ConfigError, load
from threedgen.data.assets.make import render
from threedgen.data.assets.shards import Shards
from threedgen.data.assets.source import AssetViews, CaptionedPictures, split
from threedgen.geometry.images import write_png


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Six assets, two rings of eight views of each."""
    folder = tmp_path_factory.mktemp("shards")
    make_assets(folder / "assets", more=3)
    views = ["views.size=16", "views.azimuths=8", "views.rings=2", "views.per_shard=4"]
    words = [f"data={folder / 'assets'}", *views, "engine=here", "threads=1"]
    return render(load("make-asset-views", words), folder, quiet=True)


def views(shards: Shards, n_view: int = 4, seed: int = 0) -> AssetViews:
    return AssetViews(shards, shards.entries, seed, n_view)


def test_an_entry_is_views_of_one_ring_and_the_same_in_every_block(shards: Shards) -> None:
    source = views(shards)
    whole, part = source.block(range(0, 12), 16), source.block(range(7, 9), 16)
    assert whole.rgb.shape == (48, 16, 16, 3) and whole.rgb.dtype == np.float32 and whole.c2w.shape == (48, 4, 4)
    assert np.array_equal(whole.rgb[28:36], part.rgb) and np.array_equal(whole.c2w[28:36], part.c2w)
    assert whole.captions[:6] == whole.captions[6:] == [entry.caption for entry in shards.entries]
    place = whole.c2w[:, :3, 3].reshape(12, 4, 3)
    assert np.allclose(np.ptp(np.linalg.norm(place, axis=-1), axis=1), 0, atol=1e-5)
    assert np.allclose(np.ptp(place[..., 2], axis=1), 0, atol=1e-5)
    turns = np.rad2deg(np.unwrap(np.arctan2(place[..., 1], place[..., 0])))
    assert np.allclose(np.diff(turns, axis=1) % 360, 90, atol=1e-2)
    assert len({round(float(turn[0]), 1) for turn in turns}) > 3, "always the same sides"


def test_pictures_show_what_the_cameras_see_on_greys_of_their_own(shards: Shards) -> None:
    source = views(shards)
    made = source.block(range(6), 16)
    corners = made.rgb[::4, 0, 0, 0]
    assert 0.39 < corners.min() < corners.max() < 0.61 and len(np.unique(corners.round(4))) > 3
    red = made.rgb.reshape(6, 4, 16, 16, 3)[[entry.file for entry in shards.entries].index("box.glb")]
    middle = red[:, 6:10, 6:10].mean((0, 1, 2))
    assert middle[0] > 2 * middle[1], "the red box is not red"
    numbers, _ = source.chosen(0)
    facts = shards.facts(shards.entries[0])
    assert np.allclose(made.c2w[:4], np.asarray(facts["c2w"])[numbers])


def test_single_views_and_other_sizes(shards: Shards) -> None:
    one = views(shards, 1).block(range(9), 16)
    assert one.rgb.shape == (9, 16, 16, 3) and len(one.captions) == 9
    large, small = (views(shards).block(range(2), size).rgb for size in (16, 8))
    means = large.reshape(8, 8, 2, 8, 2, 3).mean((2, 4))
    assert small.shape == (8, 8, 8, 3) and np.abs(means - small).mean() < 0.02


def test_held_out_assets_stay_so_when_others_come(shards: Shards) -> None:
    held, rest = split(shards, 2, "held-out"), split(shards, 2, "train")
    assert len(held) == 2 and len(rest) == 4 and not {e.name for e in held} & {e.name for e in rest}
    with pytest.raises(ConfigError, match="held_out: no asset is left to learn from"):
        AssetViews(shards, split(shards, 6, "train"), 0, 4)


def test_what_decides_the_pictures_is_in_the_description(shards: Shards) -> None:
    kinds = [views(shards), views(shards, 1), views(shards, 4, 1), AssetViews(shards, shards.entries[:3], 0, 4)]
    assert len({source.describe() for source in kinds}) == 4


# --- pictures of a folder ----------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    wide: Any = np.full((10, 30, 3), 0.2)
    wide[:, 10:20] = (1.0, 0, 0)
    write_png(tmp_path / "wide.png", wide)
    write_png(tmp_path / "grey.png", np.full((8, 8, 3), 0.5))
    captions(tmp_path, {"wide.png": "a red square", "grey.png": "nothing"})
    return tmp_path


def test_a_folder_of_pictures_is_cut_to_middle_squares(pictures: Path) -> None:
    source = CaptionedPictures(pictures)
    made = source.block(range(3), 8)
    assert source.n_view == 1 and made.captions == ["a red square", "nothing", "a red square"]
    assert (
        made.rgb.shape == (3, 8, 8, 3)
        and np.allclose(made.rgb[0], (1, 0, 0))
        and np.allclose(made.rgb[1], 0.5, atol=0.01)
    )
    assert made.c2w.shape == (3, 4, 4)


def test_pictures_that_cannot_be_read_are_named(pictures: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = CaptionedPictures(pictures).describe()
    (pictures / "grey.png").write_bytes(b"no picture")
    source = CaptionedPictures(pictures)
    assert len(source.pairs) == 1 and source.describe() != before
    assert "captions.csv, line 3" in caplog.text and "cannot be read as a picture" in caplog.text
    (pictures / "wide.png").unlink()
    with pytest.raises(ConfigError, match="names no picture with a caption"):
        CaptionedPictures(pictures)
    (pictures / "captions.csv").unlink()
    with pytest.raises(ConfigError, match="there is no file"):
        CaptionedPictures(pictures)
