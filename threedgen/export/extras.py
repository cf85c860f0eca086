"""Optional packages of the export: asked for before any work begins, and without loading them."""

from __future__ import annotations

import importlib.util

from threedgen.errors import ConfigError


def require_usd() -> None:
    """Raises ConfigError if usd-core is not installed."""
    if importlib.util.find_spec("pxr") is None:
        raise ConfigError("formats: usdz needs the package usd-core: pip install 'threedgen[usd]', or leave usdz out")


def require_parts() -> None:
    """Raises ConfigError if coacd is not installed."""
    if importlib.util.find_spec("coacd") is None:
        raise ConfigError(
            "collision: parts needs the package coacd: pip install 'threedgen[parts]', or take collision=hull"
        )
