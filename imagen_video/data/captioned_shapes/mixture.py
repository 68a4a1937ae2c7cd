"""How often each kind of caption occurs.

Ten kinds of shape are equally likely: the eight forms, a letter, a word. So are the eight colours,
nine motions, four backgrounds, three sizes and four styles, up to what the held-out triples take
away. The rest is in `Mixture`.
"""

import dataclasses

from imagen_video.data.captioned_shapes import grammar
from imagen_video.data.captioned_shapes.draws import Draws
from imagen_video.data.captioned_shapes.grammar import Caption, Phrase
from imagen_video.data.captioned_shapes.splits import SPLITS, held_out

KINDS = (*grammar.FORMS, "letter", "word")
WORDS = tuple(
    "GO UP ON OK HI NO BE WE SUN SKY SEA CAT DOG BEE OWL FOX CAR BUS TOY CUP HAT KEY MAP RED ICE "
    "JAM ZOO YES NEW BIG MOON STAR TREE FISH BIRD FROG LION DUCK SHIP BOAT KITE BALL DRUM BOOK "
    "CAKE SNOW RAIN WIND FIRE GOLD BLUE JUMP PLAY WAVE VIDEO APPLE HELLO MUSIC HOUSE TIGER QUEEN "
    "ROBOT".split()
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """Shares, each in [0, 1].

    Attributes:
      two_objects: scenes of two objects.
      styled_images: still images that have a style.
      styled_videos: test videos that have a style. Training never has any, so that the style of a
        video can only have been learned from images.
      spelled_words: words that are two to five random capitals; the others are from WORDS.
    """

    two_objects: float = 0.2
    styled_images: float = 0.5
    styled_videos: float = 0.0
    spelled_words: float = 0.25

    def __post_init__(self):
        for field in dataclasses.fields(self):
            share = getattr(self, field.name)
            if not 0.0 <= share <= 1.0:
                raise ValueError(f"{field.name}: {share} is not a share in [0, 1]")


def draw_caption(draws: Draws, *, is_image: bool, split: str, mixture: Mixture) -> Caption:
    """Draws a caption of `split`.

    A test caption is one that training cannot have: every object of a video is a held-out
    (COLOUR, SHAPE, MOTION) triple, every object of a styled image a held-out
    (COLOUR, SHAPE, STYLE) triple. A styled video is new already by being one; its triples are
    those of training, so that it tests the transfer of the style and nothing else.
    """
    if split not in SPLITS:
        raise ValueError(f"split: {split!r} is not one of {', '.join(SPLITS)}")
    test = split == "test"
    styled = mixture.styled_images if is_image else mixture.styled_videos * test
    background = draws.choice(grammar.BACKGROUNDS)
    number = 2 if draws.chance(mixture.two_objects) else 1
    style = draws.choice(grammar.STYLES) if draws.chance(styled) else None
    if test and is_image and style is not None:
        style, phrases = _draw_held_out_image(draws, number, mixture)
    else:
        transfer = style is not None and not is_image
        phrases = tuple(
            _draw_phrase(draws, is_image, style, test and not transfer, mixture)
            for _ in range(number)
        )
    return Caption(objects=phrases, background=background, style=style)


def _draw_phrase(
    draws: Draws, is_image: bool, style: str | None, want_held_out: bool, mixture: Mixture
) -> Phrase:
    """Draws until the triples are on the wanted side; size and kind of shape are drawn once.

    So the kinds stay equally likely, however the hash has fallen. Every kind has held-out triples.
    """
    size = draws.choice(grammar.SIZES)
    kind = draws.choice(KINDS)
    while True:
        colour = draws.choice(grammar.COLOURS)
        shape = _draw_shape(draws, kind, mixture)
        motion = None if is_image else draws.choice(grammar.MOTIONS)
        sides = {held_out(colour, shape, third) for third in (motion, style) if third is not None}
        if not sides or sides == {want_held_out}:
            return Phrase(size=size, colour=colour, shape=shape, motion=motion)


def _draw_held_out_image(
    draws: Draws, number: int, mixture: Mixture
) -> tuple[str, tuple[Phrase, ...]]:
    """Draws style and objects together: for one given style some forms have nothing held out."""
    while True:
        style = draws.choice(grammar.STYLES)
        phrases = tuple(
            Phrase(
                size=draws.choice(grammar.SIZES),
                colour=draws.choice(grammar.COLOURS),
                shape=_draw_shape(draws, draws.choice(KINDS), mixture),
                motion=None,
            )
            for _ in range(number)
        )
        if all(held_out(phrase.colour, phrase.shape, style) for phrase in phrases):
            return style, phrases


def _draw_shape(draws: Draws, kind: str, mixture: Mixture) -> str:
    if kind == "letter":
        return draws.choice(grammar.LETTERS)
    if kind == "word" and draws.chance(mixture.spelled_words):
        length = draws.choice(grammar.WORD_LENGTHS)
        return "word " + "".join(draws.choice(grammar.ALPHABET) for _ in range(length))
    if kind == "word":
        return f"word {draws.choice(WORDS)}"
    return kind
