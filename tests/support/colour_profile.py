"""ICC profiles (version 2) of grey and RGB colour spaces with a gamma, such as Display P3."""

import struct

P3 = ((0.5151, 0.2412, -0.0011), (0.2919, 0.6922, 0.0419), (0.1572, 0.0666, 0.7841))
SRGB = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7139))
"""XYZ colours of red, green and blue of Display P3 and of sRGB, adapted to the white point D50."""
WHITE = (0.9642, 1.0, 0.8249)


def _fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(65536 * value) for value in values))


def _curve(gamma: float) -> bytes:
    return b"curv" + struct.pack(">IIHH", 0, 1, round(256 * gamma), 0)


def rgb_profile(primaries: tuple[tuple[float, ...], ...] = P3, gamma: float = 2.2, name: bytes = b"test") -> bytes:
    """Return a profile whose colours are linear combinations of `primaries`, by values to the power of `gamma`."""
    tags = {}
    for letter, colour in zip(b"rgb", primaries, strict=True):
        tags[bytes([letter]) + b"XYZ"] = b"XYZ " + bytes(4) + _fixed(*colour)
        tags[bytes([letter]) + b"TRC"] = _curve(gamma)
    return _profile(b"RGB ", tags, name)


def grey_profile(gamma: float) -> bytes:
    """Return a profile of grey images whose brightness is their values to the power of `gamma`."""
    return _profile(b"GRAY", {b"kTRC": _curve(gamma)})


def _profile(space: bytes, tags: dict[bytes, bytes], name: bytes = b"test") -> bytes:
    description = b"desc" + struct.pack(">II", 0, len(name) + 1) + name + b"\0" + bytes(79)
    tags = {b"desc": description, b"cprt": b"text" + bytes(8), b"wtpt": b"XYZ " + bytes(4) + _fixed(*WHITE)} | tags
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for key, content in tags.items():
        table += key + struct.pack(">II", start + len(body), len(content))
        body += content
    head = (
        struct.pack(">I4sI", start + len(body), b"test", 0x02100000) + b"mntr" + space + b"XYZ " + bytes(12) + b"acsp"
    )
    return head.ljust(68, b"\0") + _fixed(*WHITE) + bytes(48) + table + body
