"""Captions against the grammar as the dataset's users know it."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagen_video.data.captioned_shapes import grammar
from imagen_video.data.captioned_shapes.grammar import Caption, Phrase, parse

# The grammar once more, written out by hand.
COLOUR = "(red|green|blue|yellow|purple|orange|cyan|pink)"
SHAPE = "(circle|square|triangle|star|cross|ring|heart|cube|letter [A-Z]|word [A-Z]{2,5})"
MOTION = "(moving (left|right|up|down)|bouncing|spinning|growing|shrinking|standing still)"
OBJECT = f"a (small |large )?{COLOUR} {SHAPE}"
ENDING = " on a (white|black|grey|beige) background( in (outline|striped|mosaic|pastel) style)?"
VIDEO = f"{OBJECT} {MOTION}( and {OBJECT} {MOTION})?{ENDING}"
IMAGE = f"a picture of {OBJECT}( and {OBJECT})?{ENDING}"

words = st.text(grammar.ALPHABET, min_size=2, max_size=5).map(lambda text: f"word {text}")
shapes = st.sampled_from((*grammar.FORMS, *grammar.LETTERS)) | words


objects = st.fixed_dictionaries(
    {
        "size": st.sampled_from(grammar.SIZES),
        "colour": st.sampled_from(grammar.COLOURS),
        "shape": shapes,
        "motion": st.sampled_from(grammar.MOTIONS),
    }
)


@given(
    objects=st.lists(objects, min_size=1, max_size=2),
    is_image=st.booleans(),
    background=st.sampled_from(grammar.BACKGROUNDS),
    style=st.none() | st.sampled_from(grammar.STYLES),
)
def test_text_is_a_sentence_of_the_grammar_and_parses_back(objects, is_image, background, style):
    still = {"motion": None} if is_image else {}
    phrases = tuple(Phrase(**(one | still)) for one in objects)
    caption = Caption(objects=phrases, background=background, style=style)
    assert re.fullmatch(IMAGE if is_image else VIDEO, caption.text)
    assert parse(caption.text) == caption
    assert caption.is_image == is_image


@given(st.from_regex(f"({VIDEO})|({IMAGE})", fullmatch=True))
def test_every_sentence_of_the_grammar_parses_to_its_own_text(sentence):
    assert parse(sentence).text == sentence


def test_every_object_of_the_grammar_round_trips():
    for size in grammar.SIZES:
        for colour in grammar.COLOURS:
            for shape in (*grammar.FORMS, *grammar.LETTERS, "word GO", "word HELLO"):
                for motion in (None, *grammar.MOTIONS):
                    phrase = Phrase(size=size, colour=colour, shape=shape, motion=motion)
                    caption = Caption(objects=(phrase,), background="grey")
                    assert parse(caption.text) == caption


def test_a_sentence_means_what_it_says():
    text = "a small orange letter Q spinning and a large blue cube moving up on a beige background"
    first = Phrase(size="small", colour="orange", shape="letter Q", motion="spinning")
    second = Phrase(size="large", colour="blue", shape="cube", motion="moving up")
    assert parse(text) == Caption(objects=(first, second), background="beige")
    image = parse("a picture of a red word CAT on a black background in mosaic style")
    assert image.is_image
    assert image.style == "mosaic"
    assert image.objects == (Phrase(size="normal", colour="red", shape="word CAT", motion=None),)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle on a white background",
        "a picture of a red circle spinning on a white background",
        "an orange circle spinning on a white background",
        "a normal red circle spinning on a white background",
        "a red circle spinning on a white background ",
        "a red circle spinning on a pink background",
        "a red circle moving on a white background",
        "a red word A spinning on a white background",
        "a red word ABCDEF spinning on a white background",
        "a red word cat spinning on a white background",
        "a red letter AB spinning on a white background",
        "a red circle spinning and a red circle on a white background",
        "a red ring spinning and a red ring spinning and a red ring spinning on a white background",
        "a red circle spinning on a white background in red style",
        "A red circle spinning on a white background",
    ],
)
def test_what_is_no_sentence_is_refused(text):
    with pytest.raises(ValueError, match=r"not a|there are 3"):
        parse(text)


@pytest.mark.parametrize(
    ("field", "value"),
    [("size", "huge"), ("colour", "teal"), ("shape", "word A"), ("motion", "falling")],
)
def test_a_word_outside_the_vocabulary_is_named(field, value):
    good = {"size": "small", "colour": "red", "shape": "ring", "motion": "bouncing"}
    with pytest.raises(ValueError, match=f"{field}.*{value}"):
        Phrase(**(good | {field: value}))


def test_a_caption_has_one_or_two_objects_that_all_move_or_all_stand():
    moving = Phrase(size="small", colour="red", shape="ring", motion="growing")
    still = Phrase(size="small", colour="red", shape="ring", motion=None)
    for objects in ((), (moving,) * 3, (moving, still)):
        with pytest.raises(ValueError, match="objects"):
            Caption(objects=objects, background="white")
