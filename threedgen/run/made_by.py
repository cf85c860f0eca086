"""Who makes a file of outputs/ that is not there yet: the shipped config whose run leaves it."""

from __future__ import annotations

from pathlib import Path

from threedgen.config import listing, shipped
from threedgen.config.command import command
from threedgen.run.folder import ROOT, RUN


def made_by(path: str) -> str:
    """Words the command that leaves a file at `path`, and what it needs; "" if that is in no shipped config's run."""
    parts = Path(path).parts
    if parts[:1] != ROOT.parts or parts[2:3] != (RUN,) or parts[1] not in shipped():
        return ""
    return f"`{command('--config', parts[1])}` leaves it there (needs: {listing.read(parts[1]).needs})"
