"""What training may show, and how often each thing is shown."""

import functools
import itertools
from collections import Counter

import pytest
from scipy import stats

from imagen_video.data.captioned_shapes import grammar
from imagen_video.data.captioned_shapes.draws import Draws
from imagen_video.data.captioned_shapes.mixture import KINDS, Mixture, draw_caption
from imagen_video.data.captioned_shapes.prompts import held_out_prompts
from imagen_video.data.captioned_shapes.splits import held_out, may_train

SCENES = 2500
SHAPES = (*grammar.FORMS, *grammar.LETTERS)


@functools.cache  # drawing them takes most of the time here
def captions(split, *, is_image, count=SCENES, **mixture):
    draws = (Draws("test", split, is_image, index) for index in range(count))
    options = {"is_image": is_image, "split": split, "mixture": Mixture(**mixture)}
    return tuple(draw_caption(one, **options) for one in draws)


def motion_triples(shown):
    return {(p.colour, p.shape, p.motion) for caption in shown for p in caption.objects}


def style_triples(shown):
    return {
        (phrase.colour, phrase.shape, caption.style)
        for caption in shown
        for phrase in caption.objects
        if caption.style
    }


@pytest.mark.parametrize("thirds", [grammar.MOTIONS, grammar.STYLES])
def test_about_a_tenth_of_the_triples_is_held_out(thirds):
    sides = [held_out(*triple) for triple in itertools.product(grammar.COLOURS, SHAPES, thirds)]
    assert 0.08 < sum(sides) / len(sides) < 0.12
    for colour in grammar.COLOURS:
        assert any(held_out(colour, shape, third) for shape in SHAPES for third in thirds)


def test_training_and_test_clips_share_no_triple():
    train = captions("train", is_image=False, two_objects=0.5)
    test = captions("test", is_image=False, two_objects=0.5)
    assert not motion_triples(train) & motion_triples(test)
    # Between them they show everything that is not a word.
    every = set(itertools.product(grammar.COLOURS, grammar.FORMS, grammar.MOTIONS))
    assert len(every - motion_triples(train) - motion_triples(test)) < 0.01 * len(every)


def test_training_and_test_images_share_no_styled_triple():
    train = captions("train", is_image=True, two_objects=0.5)
    test = captions("test", is_image=True, styled_images=1.0, count=500)
    assert style_triples(train)
    assert not style_triples(train) & style_triples(test)


def test_nothing_held_out_is_in_any_training_scene():
    for is_image in (False, True):
        for caption in captions("train", is_image=is_image, two_objects=0.5):
            assert may_train(caption)
            for phrase in caption.objects:
                for third in (phrase.motion, caption.style):
                    assert third is None or not held_out(phrase.colour, phrase.shape, third)


def test_styles_are_on_still_images_only_in_training():
    assert not style_triples(captions("train", is_image=False, styled_videos=1.0))
    styled = captions("test", is_image=False, styled_videos=1.0, count=300)
    assert all(caption.style for caption in styled)
    # A styled clip is new by being one: what it combines was seen, apart, in training.
    assert not any(held_out(*triple) for triple in motion_triples(styled) | style_triples(styled))
    assert not any(may_train(caption) for caption in styled)


def test_words_are_drawn_as_often_as_documented():
    shown = captions("train", is_image=False)
    phrases = [phrase for caption in shown for phrase in caption.objects]
    kinds = Counter(p.shape.split()[0] for p in phrases)
    assert stats.chisquare([kinds[kind] for kind in KINDS]).pvalue > 1e-4
    for field, values in (("size", grammar.SIZES), ("colour", grammar.COLOURS)):
        counts = Counter(getattr(phrase, field) for phrase in phrases)
        assert min(counts[value] for value in values) > 0.85 * len(phrases) / len(values)
    backgrounds = Counter(caption.background for caption in shown)
    assert stats.chisquare([backgrounds[b] for b in grammar.BACKGROUNDS]).pvalue > 1e-4
    pairs = sum(len(caption.objects) == 2 for caption in shown)
    assert stats.binomtest(pairs, len(shown), 0.2).pvalue > 1e-4
    styled = sum(caption.style is not None for caption in captions("train", is_image=True))
    assert stats.binomtest(styled, SCENES, 0.5).pvalue > 1e-4


def test_kinds_stay_equally_likely_among_held_out_clips():
    phrases = [caption.objects[0] for caption in captions("test", is_image=False)]
    kinds = Counter(phrase.shape.split()[0] for phrase in phrases)
    assert stats.chisquare([kinds[kind] for kind in KINDS]).pvalue > 1e-4


def test_draws_are_uniform():
    draws = Draws("uniform", 1)
    values = [draws.uniform(2.0, 5.0) for _ in range(5000)]
    assert stats.kstest(values, stats.uniform(2, 3).cdf).pvalue > 1e-4
    counts = Counter(draws.choice("abcdefg") for _ in range(5000))
    assert stats.chisquare(list(counts.values())).pvalue > 1e-4
    assert Draws("uniform", 2).uniform() != Draws("uniform", 1).uniform()


@pytest.mark.parametrize("objects", [1, 2])
def test_prompts_are_held_out_and_each_is_new(objects):
    prompts = held_out_prompts(60, seed=3, objects=objects)
    assert len(set(prompts)) == 60
    assert held_out_prompts(20, seed=3, objects=objects) == prompts[:20]
    assert held_out_prompts(20, seed=4, objects=objects) != prompts[:20]
    for prompt in prompts:
        caption = grammar.parse(prompt)
        assert len(caption.objects) == objects
        assert not caption.is_image
        assert caption.style is None
        assert all(held_out(p.colour, p.shape, p.motion) for p in caption.objects)


def test_impossible_shares_and_splits_are_named():
    with pytest.raises(ValueError, match="two_objects"):
        Mixture(two_objects=1.5)
    with pytest.raises(ValueError, match="validation"):
        draw_caption(Draws(0), is_image=False, split="validation", mixture=Mixture())
    with pytest.raises(ValueError, match="objects"):
        held_out_prompts(1, seed=0, objects=3)
