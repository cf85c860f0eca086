"""Write panorama.html, a page that shows an equirectangular image as seen from its centre."""

from pathlib import Path

from PIL import Image

from threedgen.run.disk import write_atomic

from .page import embedded, jpeg, page


def write_page(path: Path, image_path: Path, title: str) -> None:
    """Write the page of an equirectangular image, with the image embedded. Raises OSError.

    The image must cover 360 degrees, with the horizon in the middle row and the same number of pixels per degree along
    both axes. An image file that is too large for a page is embedded as a JPEG.
    """
    data = embedded(image_path)
    if data is None:
        with Image.open(image_path) as image:
            data = jpeg(image)
    scripts = ("canvas.js", "gestures.js", "panorama.js")
    write_atomic(path, page("panorama.html", scripts, title=title, picture=data, name=image_path.name))
