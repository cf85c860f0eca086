"""Interface between an optimised representation and the systems, in addition to the renderer's (`render.Field`)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from threedgen.config import ConfigError


class Representation(nn.Module):
    """Base of fields and meshes: callable on points and with a method `density`, as in `render.Field`.

    rasterised: True if the class renders whole images itself (`dmtet.DMTet.render`), False if rays are marched.
    along_ray: query used instead of the field where the density depends on the ray (`sdf.SDF.along_ray`), or None.
    A submodule `encoding` may have its own learning rate.
    """

    options: Any
    rasterised = False
    along_ray: Any = None

    def at_step(self, step: int, max_steps: int | None = None) -> None:
        """Set the scheduled options to their values at this step."""

    def geometry(self) -> list[Tensor]:
        """Return the shape parameters that may have their own learning rate; by default none."""
        return []

    def init_from(self, other: nn.Module) -> None:
        """Copy all parameters of a trained representation. Raises ConfigError for another class or other shapes."""
        one, two = ({k: tuple(v.shape) for k, v in part.state_dict().items()} for part in (self, other))
        if type(self) is not type(other) or one != two:
            sizes = " with other sizes" if type(self) is type(other) else ""
            raise ConfigError(
                f"{type(self).__name__} cannot be initialised from {type(other).__name__}{sizes}. "
                "Use the field of the previous stage with the same sizes.",
                "stages",
            )
        self.load_state_dict(other.state_dict())
