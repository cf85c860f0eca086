"""Panorama page, panorama.html: view from inside an equirectangular image."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from threedgen.run.disk import write_atomic

from .page import embedded, jpeg, page


def write_page(path: Path, image_path: Path, title: str) -> None:
    """Write the page of an equirectangular image in the same folder. Raises OSError.

    The image covers 360 degrees, with the horizon in the middle row and square pixels in degrees. An image file too
    large for a page is embedded as a JPEG.
    """
    data = embedded(image_path)
    if data is None:
        with Image.open(image_path) as image:
            data = jpeg(image)
    scripts = ("canvas.js", "gestures.js", "panorama.js")
    write_atomic(path, page("panorama.html", scripts, title=title, picture=data, name=image_path.name))
