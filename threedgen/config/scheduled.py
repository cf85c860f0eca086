"""Numbers that may change while a run goes on: one type, one meaning."""

from __future__ import annotations

import re
import sys
from bisect import bisect_right
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

_PERCENT = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?)\s*%\s*\Z")
_STEP = re.compile(r"\s*([0-9]+)\s*\Z")
_SENTENCE = (
    "should be a number, or {step: value, ...} with steps such as 0 and 500, or all of them percents "
    "of the run such as 0% and 50%: "
)


class Points(dict):
    """{step: value} in the order of the steps; a bound of a field (ge, le, gt, lt) holds for every value."""

    def __ge__(self, bound: float) -> bool:
        return all(value >= bound for value in self.values())

    def __gt__(self, bound: float) -> bool:
        return all(value > bound for value in self.values())

    def __le__(self, bound: float) -> bool:
        return all(value <= bound for value in self.values())

    def __lt__(self, bound: float) -> bool:
        return all(value < bound for value in self.values())


def _fail(problem: str) -> PydanticCustomError:
    return PydanticCustomError("schedule", "{problem}", {"problem": _SENTENCE + problem})


def is_step(key: Any) -> bool:
    """Is `key` a step (500, "500") or a share of the run ("50%")?"""
    if isinstance(key, str):
        return bool(_STEP.match(key) or _PERCENT.match(key))
    return isinstance(key, (int, float)) and not isinstance(key, bool)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _fail(f"{value!r} is not a number")
    if not abs(value) <= sys.float_info.max:
        raise _fail("a value is not finite")
    return float(value)


def _step(key: Any) -> int | str:
    """A step as int, or a percent as text in its shortest form ("50%")."""
    percent = _PERCENT.match(key) if isinstance(key, str) else None
    if percent and float(percent[1]) > 100:
        raise _fail(f"{key} is more than 100%")
    if percent:
        return f"{float(percent[1]):g}%"
    if is_step(key) and (isinstance(key, str) or (key >= 0 and key == int(key))):
        return int(key)
    raise _fail(f"{key!r} is not a step")


def _position(key: int | str) -> float:
    return float(key[:-1]) if isinstance(key, str) else float(key)


def _scheduled(value: Any) -> float | Points:
    if not isinstance(value, dict):
        return _number(value)
    if not value:
        raise _fail("it is empty")
    points = {_step(key): _number(number) for key, number in value.items()}
    if len({isinstance(key, str) for key in points}) > 1:
        raise _fail("steps and percents are mixed")
    if len(points) < len(value):
        raise _fail("a step is given twice")
    return Points({key: points[key] for key in sorted(points, key=_position)})


# A number (constant), or {step: value}: piecewise linear between the steps, constant outside them. Steps
# count optimisation steps; "50%" is that share of `trainer.max_steps`. Bounds work: Field(0.98, ge=0, le=1).
Scheduled: TypeAlias = Annotated[Any, BeforeValidator(_scheduled)]


def at(schedule: float | dict, step: int, max_steps: int | None = None) -> float:
    """The value of a Scheduled at optimisation step `step` (>= 0).

    `max_steps` is the length of the run; a schedule in percents needs it (ValueError without).
    """
    if not isinstance(schedule, dict):
        return float(schedule)
    keys, values = list(schedule), list(schedule.values())
    place = float(step)
    if isinstance(keys[0], str):
        if not max_steps:
            raise ValueError("a schedule in percents needs max_steps")
        place = 100.0 * step / max_steps
    positions = [_position(key) for key in keys]
    after = bisect_right(positions, place)
    if after in (0, len(positions)):
        return float(values[min(after, len(positions) - 1)])
    left, right = positions[after - 1], positions[after]
    low, high = values[after - 1], values[after]
    value = low + (high - low) * ((place - left) / (right - left))
    return float(min(max(value, min(low, high)), max(low, high)))  # rounding may step over the end by a bit
