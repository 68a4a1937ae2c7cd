"""The colours behind the colour words, sRGB in [0, 1].

The eight hues lie at least 23 degrees apart and differ from all four backgrounds. Mixing, shading
and antialiasing are done on these sRGB values directly, as video codecs and networks see them.
"""

import colorsys

from imagen_video.data.captioned_shapes.draws import Draws

RGB = tuple[float, float, float]


def _of_bytes(red: int, green: int, blue: int) -> RGB:
    return red / 255, green / 255, blue / 255


OBJECT_RGB: dict[str, RGB] = {
    "red": _of_bytes(220, 35, 35),
    "green": _of_bytes(30, 160, 60),
    "blue": _of_bytes(35, 75, 225),
    "yellow": _of_bytes(245, 215, 25),
    "purple": _of_bytes(135, 45, 185),
    "orange": _of_bytes(245, 130, 20),
    "cyan": _of_bytes(25, 195, 215),
    "pink": _of_bytes(250, 120, 185),
}
BACKGROUND_RGB: dict[str, RGB] = {
    "white": _of_bytes(248, 248, 248),
    "black": _of_bytes(12, 12, 12),
    "grey": _of_bytes(128, 128, 128),
    "beige": _of_bytes(228, 212, 180),
}
PASTEL_WHITE = 0.55  # share of white in a pastel colour


def object_rgb(colour: str, draws: Draws, *, pastel: bool) -> RGB:
    """Draws the shade of `colour` that one object wears: hue +-4 degrees, brightness +-5%."""
    hue, saturation, value = colorsys.rgb_to_hsv(*OBJECT_RGB[colour])
    hue = (hue + draws.uniform(-4.0, 4.0) / 360) % 1.0
    saturation = min(1.0, saturation * draws.uniform(0.95, 1.05))
    value = min(1.0, value * draws.uniform(0.95, 1.05))
    rgb = colorsys.hsv_to_rgb(hue, saturation, value)
    if pastel:
        rgb = tuple(PASTEL_WHITE + (1 - PASTEL_WHITE) * channel for channel in rgb)
    return rgb


def background_rgb(background: str, draws: Draws) -> RGB:
    """Draws the shade of one background: its palette entry, lighter or darker by at most 3%."""
    shift = draws.uniform(-0.03, 0.03)
    return tuple(min(1.0, max(0.0, channel + shift)) for channel in BACKGROUND_RGB[background])
