"""Choices that config models and implementations share (no torch here)."""

from __future__ import annotations

from typing import Literal

Shift = Literal["default", "interpolated"]
"""Shift of the log signal-to-noise ratio: equal at all timesteps, or growing linearly from zero."""
Timestep = Literal["same", "matched"]
"""Timestep of a 2D model under a shifted schedule: the same number, or that with the same noise in its own schedule."""
Layout = Literal["row", "rowcol", "full"]
"""Tokens of the views that a token attends to: its row (cameras at one elevation); its row or column (six mesh views:
front, right, back, left, top, bottom); or all."""
Arrangement = Literal["parallel", "serial"]
"""Inputs of the attention branches: the same for all, or each with the output of those before it (ablation)."""
Control = Literal["rays", "geometry"]
"""Input of a condition guider: camera rays, or positions and normals of a mesh."""
