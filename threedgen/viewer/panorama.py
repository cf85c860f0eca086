"""The page of a panorama, panorama.html: one stands inside it and looks around."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from threedgen.run.disk import write_atomic

from .page import embedded, jpeg, page


def write_page(path: Path, picture: Path, title: str) -> None:
    """Writes the page of an equirectangular picture, beside it. Raises OSError.

    The picture goes all around, with the horizon in its middle and as many degrees to a row as to a column. One that is
    too large for a page is in it as a JPEG.
    """
    data = embedded(picture)
    if data is None:
        with Image.open(picture) as image:
            data = jpeg(image)
    scripts = ("canvas.js", "gestures.js", "panorama.js")
    write_atomic(path, page("panorama.html", scripts, title=title, picture=data, name=picture.name))
