"""What the systems ask of a thing that is optimised, beside what the renderer asks (`render.Field`)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from threedgen.config import ConfigError


class Representation(nn.Module):
    """A field or a mesh: it has `density`, and is called with points, as `render.Field` says.

    A rasterised one draws whole pictures with `render` (`dmtet.DMTet.render`); through others rays are marched.
    `encoding`, a module, learns at a rate of its own. `along`, where the density depends on the ray, is asked instead
    of the field itself (`sdf.SDF.along`).
    """

    options: Any
    rasterised = False
    along: Any = None

    def at_step(self, step: int, max_steps: int | None = None) -> None:
        """Sets what the options let change during a run to its value at this step."""

    def geometry(self) -> list[Tensor]:
        """Parameters of the shape that may learn at a rate of their own; none unless it says so."""
        return []

    def start(self, other: nn.Module) -> None:
        """Begins from what was optimised before: copies all its numbers. Raises ConfigError for another kind."""
        one, two = ({k: tuple(v.shape) for k, v in part.state_dict().items()} for part in (self, other))
        if type(self) is not type(other) or one != two:
            sizes = " of other sizes" if type(self) is type(other) else ""
            raise ConfigError(
                f"a field goes on from one of its own kind and sizes; {type(self).__name__} cannot begin from "
                f"{type(other).__name__}{sizes}",
                "stages",
            )
        self.load_state_dict(other.state_dict())
