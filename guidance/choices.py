"""Words for the variants of a method, which its config and its mathematics share (no torch here)."""

from __future__ import annotations

from typing import Literal

Shift = Literal["default", "interpolated"]
"""Of a signal-to-noise ratio: by one factor at all timesteps, or from none at the first one to all at the last."""
Timestep = Literal["same", "matched"]
"""That which a 2D model is told of a shifted schedule: of the same number, or the one at which it knew such noise."""
Layout = Literal["row", "rowcol", "full"]
"""Which tokens of the views a token attends to: those of its row (cameras at one height); those of its row or column
(six views around a mesh: front, right, back, left, top, bottom); or all of them."""
Arrangement = Literal["parallel", "serial"]
"""All branches of attention see what the first sees, or each also what those before it have added (the ablation)."""
Control = Literal["rays", "geometry"]
"""What a condition guider is shown: the rays of the cameras, or positions and normals of a mesh."""
