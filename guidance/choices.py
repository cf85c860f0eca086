"""Literal types of options that config models and implementations share; imports no torch."""

from typing import Literal

Shift = Literal["default", "interpolated"]
"""Shift of the log signal-to-noise ratio: equal at all timesteps, or growing linearly with t from zero at t = 0."""
Timestep = Literal["same", "matched"]
"""Timestep that a 2D model receives while samples follow a shifted schedule: "same" passes the sampler's timestep,
"matched" passes the timestep whose signal-to-noise ratio in the model's own schedule is the same."""
Layout = Literal["row", "rowcol", "full"]
"""Tokens that a token attends to across views: "row" is its image row in all views (cameras at one elevation), "rowcol"
its rows and columns in six mesh views (front, right, back, left, top, bottom), "full" all tokens of all views."""
Arrangement = Literal["parallel", "serial"]
"""Input of the added attention branches: "parallel" gives all the input of the layer, "serial" (an ablation) adds the
output of the self-attention and of the preceding branches to that input."""
Control = Literal["rays", "geometry"]
"""Input of an adapter's condition guider: camera rays, or positions and normals of a mesh, per pixel."""
