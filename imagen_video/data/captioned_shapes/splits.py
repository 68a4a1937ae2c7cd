"""Which combinations of words are kept for the test split.

A tenth of the (COLOUR, SHAPE, MOTION) triples and a tenth of the (COLOUR, SHAPE, STYLE) triples
are held out: they are in no training scene, of one object or two, moving or still. A stable hash
decides, over the whole SHAPE ("letter Q", "word CAT"), so that any triple, also one with a word
never drawn before, has one side for ever.
"""

import hashlib

from imagen_video.data.captioned_shapes.grammar import Caption

SPLITS = ("train", "test")
HELD_OUT_ONE_IN = 10


def held_out(colour: str, shape: str, third: str) -> bool:
    """Tells whether the triple is kept for testing; `third` is a MOTION or a STYLE."""
    digest = hashlib.blake2b(f"{colour}|{shape}|{third}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % HELD_OUT_ONE_IN == 0


def triples(caption: Caption) -> list[tuple[str, str, str]]:
    """Returns every (COLOUR, SHAPE, MOTION) and (COLOUR, SHAPE, STYLE) that `caption` shows."""
    return [
        (phrase.colour, phrase.shape, third)
        for phrase in caption.objects
        for third in (phrase.motion, caption.style)
        if third is not None
    ]


def may_train(caption: Caption) -> bool:
    """Tells whether `caption` may occur in training: nothing held out, and no styled video."""
    styled_video = caption.style is not None and not caption.is_image
    return not styled_video and not any(held_out(*triple) for triple in triples(caption))
