"""What a caption of the built-in dataset may say: records, their text, and the way back.

    caption    := object [" and " object] " on a " BACKGROUND " background" [" in " STYLE " style"]
    object     := "a " ["small " | "large "] COLOUR " " SHAPE " " MOTION
    BACKGROUND := white | black | grey | beige

and for still images the same with "a picture of " in front and no MOTION. Every caption has
exactly one reading, so `parse(caption.text) == caption`.
"""

import dataclasses
import re

SIZES = ("small", "normal", "large")  # "normal" is the size that goes unsaid
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink")
FORMS = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "cube")
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LETTERS = tuple(f"letter {letter}" for letter in ALPHABET)
DIRECTIONS = ("left", "right", "up", "down")
MOVING = tuple(f"moving {direction}" for direction in DIRECTIONS)
MOTIONS = (*MOVING, "bouncing", "spinning", "growing", "shrinking", "standing still")
BACKGROUNDS = ("white", "black", "grey", "beige")
STYLES = ("outline", "striped", "mosaic", "pastel")
WORD_LENGTHS = range(2, 6)

_WORD = re.compile(r"word [A-Z]{2,5}")
_OBJECT = re.compile(
    rf"a (?:(?P<size>small|large) )?(?P<colour>{'|'.join(COLOURS)}) "
    rf"(?P<shape>{'|'.join(FORMS)}|letter [A-Z]|word [A-Z]{{2,5}})"
    rf"(?: (?P<motion>{'|'.join(MOTIONS)}))?"
)
_CAPTION = re.compile(
    r"(?P<picture>a picture of )?(?P<objects>.+?)"
    rf" on a (?P<background>{'|'.join(BACKGROUNDS)}) background"
    rf"(?: in (?P<style>{'|'.join(STYLES)}) style)?"
)


def is_shape(shape: str) -> bool:
    """Tells whether `shape` is a SHAPE of the grammar, such as "ring", "letter Q" or "word CAT"."""
    return shape in FORMS or shape in LETTERS or _WORD.fullmatch(shape) is not None


def written(shape: str) -> str | None:
    """Returns the capitals a letter or word shows, "Q" of "letter Q"; None for other shapes."""
    kind, _, capitals = shape.partition(" ")
    return capitals if kind in ("letter", "word") else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phrase:
    """One object of a caption.

    Attributes:
      size: one of SIZES; "normal" is left unsaid.
      colour: one of COLOURS.
      shape: one of FORMS or LETTERS, or "word " and two to five capitals.
      motion: one of MOTIONS; None in the caption of a still image.
    """

    size: str
    colour: str
    shape: str
    motion: str | None

    def __post_init__(self):
        _check("size", self.size, SIZES)
        _check("colour", self.colour, COLOURS)
        if not is_shape(self.shape):
            raise ValueError(
                f"shape: {self.shape!r} is none of {', '.join(FORMS)}, letter A, word CAT"
            )
        if self.motion is not None:
            _check("motion", self.motion, MOTIONS)

    @property
    def text(self) -> str:
        """The words of this object: "a small red ring spinning"."""
        size = () if self.size == "normal" else (self.size,)
        motion = () if self.motion is None else (self.motion,)
        return " ".join(("a", *size, self.colour, self.shape, *motion))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Caption:
    """What one clip or still image shows.

    Attributes:
      objects: one or two phrases. All of them move, or none does.
      background: one of BACKGROUNDS.
      style: one of STYLES, or None.
    """

    objects: tuple[Phrase, ...]
    background: str
    style: str | None = None

    def __post_init__(self):
        if len(self.objects) not in (1, 2):
            raise ValueError(f"objects: there are {len(self.objects)}, a caption has one or two")
        if len({phrase.motion is None for phrase in self.objects}) > 1:
            raise ValueError("objects: one has a motion and one has none")
        _check("background", self.background, BACKGROUNDS)
        if self.style is not None:
            _check("style", self.style, STYLES)

    @property
    def is_image(self) -> bool:
        """True for a still image."""
        return self.objects[0].motion is None

    @property
    def text(self) -> str:
        """The caption in words."""
        picture = "a picture of " if self.is_image else ""
        objects = " and ".join(phrase.text for phrase in self.objects)
        style = "" if self.style is None else f" in {self.style} style"
        return f"{picture}{objects} on a {self.background} background{style}"


def parse(text: str) -> Caption:
    """Reads a caption back into its record.

    Raises:
      ValueError: `text` is no sentence of the grammar.
    """
    whole = _CAPTION.fullmatch(text)
    if whole is None:
        raise ValueError(f"not a caption of this dataset: {text!r}")
    phrases = []
    for words in whole["objects"].split(" and "):
        match = _OBJECT.fullmatch(words)
        if match is None or (match["motion"] is None) != (whole["picture"] is not None):
            raise ValueError(f"not an object of this dataset: {words!r} in {text!r}")
        phrases.append(Phrase(**(match.groupdict() | {"size": match["size"] or "normal"})))
    return Caption(objects=tuple(phrases), background=whole["background"], style=whole["style"])


def _check(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{field}: {value!r} is not one of {', '.join(allowed)}")
