"""Windows of frames that are sampled together."""

from typing import Any

import pytest

from tests.support.errors import refused
from tests.support.tiny_mvdiffusion import tiny_model
from threedgen.systems.texture.options import PathConfig
from threedgen.systems.texture.windows import Window, check_model, plan


def test_windows_share_key_frames_with_earlier_ones() -> None:
    windows = plan(range(10), PathConfig(views=5, shared=2))
    assert windows == [Window((0, 1, 2, 3, 4)), Window((3, 4, 5, 6, 7), (3, 4)), Window((5, 6, 7, 8, 9), (5, 6, 7))]
    assert sorted(n for window in windows for n in window.new) == list(range(10))


def test_frames_between_are_conditioned_on_both_sides() -> None:
    windows = plan([0, 2, 6, 7], PathConfig(views=4, shared=1))
    assert windows[0] == Window((0, 2, 6, 7))
    assert windows[1:] == [Window((0, 1, 2), (0, 2)), Window((2, 3, 4, 6), (2, 6)), Window((2, 5, 6), (2, 6))]
    assert plan([0, 2, 6, 7], PathConfig(interpolate=False)) == [Window((0, 2, 6, 7))]


def test_odd_numbers_of_tokens_are_refused_if_they_form_pairs() -> None:
    model, odd = tiny_model("depth"), PathConfig(height=20, width=12)  # 5 x 3 tokens of 4 pixels
    check_model(model, odd)
    model.multiview.encoding = "reference"
    with refused("rig.width", "20 x 12", 16):
        check_model(model, odd)
    even = PathConfig(height=40, width=24)
    check_model(model, even)
    model.draft = 0.5
    with refused("rig.width", "40 x 24", "half", 32):
        check_model(model, even)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"views": 1}, "greater than or equal to 2"),
        ({"shared": 12}, "less than views 12. Try 4"),
        ({"scannet": "a", "file": "b.json"}, "cannot both"),
    ],
)
def test_options_that_do_not_fit(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        PathConfig(**values)
