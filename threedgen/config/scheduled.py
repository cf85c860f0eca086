"""Type `Scheduled` of config fields: a number, or values at steps with linear interpolation between them."""

import re
import sys
from bisect import bisect_right
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from .errors import short

_PERCENT = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?)\s*%\s*\Z")
_STEP = re.compile(r"\s*([0-9]+)\s*\Z")
_EXPECTED = (
    "should be a number, or {step: value, ...} with steps such as 0 and 500, or all of them percents "
    "of the run such as 0% and 50%: "
)


class Points(dict[Any, float]):
    """Schedule {step: value}, sorted by step. All steps are int, or all are percentages, such as the str "50%".

    A comparison such as `points >= 0` is True if it holds for all values; pydantic checks bounds of a field with it.
    """

    def __ge__(self, bound: float) -> bool:
        return all(value >= bound for value in self.values())

    def __gt__(self, bound: float) -> bool:
        return all(value > bound for value in self.values())

    def __le__(self, bound: float) -> bool:
        return all(value <= bound for value in self.values())

    def __lt__(self, bound: float) -> bool:
        return all(value < bound for value in self.values())


def is_schedule(tree: dict[Any, Any]) -> bool:
    """Return whether a dict is a schedule {step: number}. A step is 500, "500", or a percentage of the run ("50%")."""
    numbers = all(isinstance(value, (int, float)) for value in tree.values())  # sections may be named by digits too
    return bool(tree) and numbers and all(map(_is_step, tree))


def _is_step(key: object) -> bool:
    if isinstance(key, str):
        return bool(_STEP.match(key) or _PERCENT.match(key))
    return isinstance(key, (int, float)) and not isinstance(key, bool)


def _mistake(problem: str) -> PydanticCustomError:
    return PydanticCustomError("schedule", "{problem}", {"problem": _EXPECTED + problem})


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _mistake(f"{short(value)} is not a number")
    if not abs(value) <= sys.float_info.max:
        raise _mistake("a value is not finite")
    return float(value)


def _step(key: object) -> int | str:
    percent = _PERCENT.match(key) if isinstance(key, str) else None
    if percent and float(percent[1]) > 100:
        raise _mistake(f"{key} is more than 100%")
    if percent:
        return f"{float(percent[1]):g}%"
    if isinstance(key, str) and _STEP.match(key):
        return int(key)
    if isinstance(key, (int, float)) and not isinstance(key, bool) and key >= 0 and key == int(key):
        return int(key)
    raise _mistake(f"{short(key)} is not a step")


def _position(key: int | str) -> float:
    return float(key[:-1]) if isinstance(key, str) else float(key)


def _validate(value: object) -> float | Points:
    if not isinstance(value, dict):
        return _number(value)
    if not value:
        raise _mistake("it is empty")
    points = {_step(key): _number(number) for key, number in value.items()}
    if len({isinstance(key, str) for key in points}) > 1:
        raise _mistake("steps and percents are mixed")
    if len(points) < len(value):
        raise _mistake("a step is given twice")
    return Points({key: points[key] for key in sorted(points, key=_position)})


Scheduled: TypeAlias = Annotated[Any, BeforeValidator(_validate)]
"""Config field type: a number, or a schedule {step: value}. Bounds such as Field(1.0, ge=0) apply to all values.

Values are linear between steps, and constant before the first and after the last one. Steps are optimisation steps, or
percentages of `trainer.max_steps` ("50%").
"""


def at(schedule: float | dict[Any, float], step: int, max_steps: int | None = None) -> float:
    """Return the value of a `Scheduled` number at an optimisation step.

    Values are linear between the steps of a schedule, and constant before the first and after the last one.

    Args:
        schedule: a number, or a dict {step: value}. All steps may be percentages of the run, such as "50%".
        step: optimisation step, from 0.
        max_steps: number of steps of the run, needed for percentages.

    Raises:
        ValueError: the steps are percentages, and `max_steps` is None or 0.
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
    return float(min(max(value, min(low, high)), max(low, high)))  # rounding errors may exceed low or high
