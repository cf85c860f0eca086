"""Which frames are drawn together."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.errors import refused
from tests.support.tiny_mvdiffusion import tiny_model
from threedgen.systems.texture.drawing import Draw, check_model, plan
from threedgen.systems.texture.options import TextureConfig


def config(**values: Any) -> TextureConfig:
    return TextureConfig(task="texture", **values)


def test_windows_share_frames_with_those_before() -> None:
    draws = plan(range(10), config(views=5, shared=2))
    assert draws == [Draw((0, 1, 2, 3, 4)), Draw((3, 4, 5, 6, 7), (3, 4)), Draw((5, 6, 7, 8, 9), (5, 6, 7))]
    assert sorted(n for draw in draws for n in draw.new) == list(range(10))


def test_frames_between_are_drawn_from_both_sides() -> None:
    draws = plan([0, 2, 6, 7], config(views=4, shared=1))
    assert draws[0] == Draw((0, 2, 6, 7))
    assert draws[1:] == [Draw((0, 1, 2), (0, 2)), Draw((2, 3, 4, 6), (2, 6)), Draw((2, 5, 6), (2, 6))]
    assert plan([0, 2, 6, 7], config(interpolate=False)) == [Draw((0, 2, 6, 7))]


def test_maps_of_an_odd_number_of_tokens_are_refused_if_they_form_pairs() -> None:
    model, odd = tiny_model("depth"), config(height=20, width=12)  # 5 x 3 tokens of 4 pixels
    check_model(model, odd)
    model.multiview.encoding = "reference"
    with refused("width", "20 x 12", 16):
        check_model(model, odd)
    even = config(height=40, width=24)
    check_model(model, even)
    model.draft = 0.5
    with refused("width", "40 x 24", "half", 32):
        check_model(model, even)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"views": 1}, "greater than or equal to 2"),
        ({"shared": 12}, "less than views 12; try 4"),
        ({"texture": 1000}, "try 512"),
        ({"prompt": "a", "prompts": "b.txt"}, "one text for all frames"),
        ({"scannet": "a", "path": "b.json"}, "cannot both"),
    ],
)
def test_options_that_do_not_fit(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        config(**values)
