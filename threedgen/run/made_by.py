"""Search for the shipped config that writes a missing file in outputs/."""

from pathlib import Path

from threedgen.config import listing, shipped
from threedgen.config.command import command
from threedgen.run.folder import NAME_WITHOUT_PROMPT, ROOT


def made_by(path: str) -> str:
    """Return a note with the command that writes the file `path`, and its requirements; "" if no config writes it."""
    parts = Path(path).parts
    if parts[:1] != ROOT.parts or parts[2:3] != (NAME_WITHOUT_PROMPT,) or parts[1] not in shipped():
        return ""
    return f"`{command('--config', parts[1])}` writes it (needs: {listing.read(parts[1]).needs})"
