"""ICC profiles (version 2) of RGB colour spaces with a gamma, such as Display P3."""

import struct

P3 = ((0.5151, 0.2412, -0.0011), (0.2919, 0.6922, 0.0419), (0.1572, 0.0666, 0.7841))
"""XYZ colours of red, green and blue of Display P3, adapted to the white point D50."""


def _fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(65536 * value) for value in values))


def rgb_profile(primaries: tuple[tuple[float, ...], ...] = P3, gamma: float = 2.2) -> bytes:
    """Return a profile whose colours are linear combinations of `primaries`, by values to the power of `gamma`."""
    white = (0.9642, 1.0, 0.8249)
    curve = b"curv" + struct.pack(">IIHH", 0, 1, round(256 * gamma), 0)
    name = b"desc" + struct.pack(">II", 0, 5) + b"test\0" + bytes(79)
    tags = {b"desc": name, b"cprt": b"text" + bytes(8), b"wtpt": b"XYZ " + bytes(4) + _fixed(*white)}
    for letter, colour in zip(b"rgb", primaries, strict=True):
        tags[bytes([letter]) + b"XYZ"], tags[bytes([letter]) + b"TRC"] = b"XYZ " + bytes(4) + _fixed(*colour), curve
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for key, content in tags.items():
        table += key + struct.pack(">II", start + len(body), len(content))
        body += content
    head = struct.pack(">I4sI", start + len(body), b"test", 0x02100000) + b"mntrRGB XYZ " + bytes(12) + b"acsp"
    return head.ljust(68, b"\0") + _fixed(*white) + bytes(48) + table + body
