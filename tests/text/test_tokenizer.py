"""Any text has ids, ids end in </s>, and nothing is lost without being said."""

import io
import logging
import pickle
import unicodedata

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from imagen_video.text.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "star", "letter Q", "word JUMP")
CAPTIONS = [
    f"a {size}{colour} {shape} moving {way} on a {ground} background"
    for size in ("", "small ", "large ")
    for colour in COLOURS
    for shape in SHAPES
    for way in ("left", "up")
    for ground in ("white", "black")
]
MODEL = train_tokenizer(CAPTIONS, 400)
TOKENIZER = Tokenizer(model=MODEL)


def test_special_ids():
    tokens = TOKENIZER(["a red circle", ""], 12)
    assert tokens.dtype == np.int32 and tokens.shape == (2, 12)
    length = list(tokens[0]).index(1) + 1
    assert (tokens[0, : length - 1] > 2).all()
    np.testing.assert_array_equal(tokens[0, length:], 0)
    np.testing.assert_array_equal(tokens[1], [1] + [0] * 11)
    assert TOKENIZER([], 12).shape == (0, 12)


def test_vocabulary_is_small_and_holds_the_words():
    assert 256 + 3 < TOKENIZER.vocab_size <= 400
    for word in (*COLOURS, "circle", "background", "moving"):
        assert len(TOKENIZER.encode(word)) == 1, word


@pytest.mark.parametrize(
    "text",
    [
        "a red circle",
        "ein grüner würfel über dem fluß",
        "赤い円が左に動く",
        "красный круг движется",
        "دائرة حمراء",
        "🟥 👩‍🚀 riding 🐴",
        'x² + 3 ≈ 7; \\ "quoted" & <tag> </s> <pad>',
        "\t a   b\n c \r\n",
        "zażółć gęślą jaźń",
        "\x00\x07 control",
        "e\u0301 and \u00e9",
        "\u2028\u200b\ufeff",
    ],
)
def test_unicode_round_trip(text):
    ids = TOKENIZER.encode(text)
    assert 2 not in ids and 1 not in ids and 0 not in ids
    # The model's own normaliser is its rule; decoding must return exactly the normalised text.
    assert TOKENIZER.decode(ids) == TOKENIZER._processor.normalize(text).replace("▁", " ").strip()


def test_plain_text_survives_unchanged():
    for text in (
        "a red circle",
        "ein grüner würfel",
        "赤い円が左に動く",
        "красный круг",
        "🟥 🐴 1234",
    ):
        assert TOKENIZER.decode(TOKENIZER([text], 80)[0]) == text
        assert text == unicodedata.normalize("NFKC", text).lower()


def test_case_and_width_do_not_matter():
    variants = ["a red circle", "A Red CIRCLE", "ａ　ｒｅｄ circle"]
    tokens = TOKENIZER(variants, 12)
    np.testing.assert_array_equal(tokens[1], tokens[0])
    np.testing.assert_array_equal(tokens[2], tokens[0])
    assert (TOKENIZER(["a red star"], 12)[0] != tokens[0]).any()


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(), max_size=40))
def test_any_text_has_valid_ids(text):
    tokens = TOKENIZER([text], 400)[0]
    assert (tokens == 1).sum() == 1 and 2 not in tokens
    assert tokens.min() >= 0 and tokens.max() < TOKENIZER.vocab_size
    length = list(tokens).index(1) + 1
    assert (tokens[: length - 1] > 2).all() and (tokens[length:] == 0).all()


def test_lone_surrogates_are_accepted():
    assert TOKENIZER.decode(TOKENIZER(["a \ud800 b"], 12)[0]) == "a ? b"


def test_truncation_says_how_many_tokens_were_lost(caplog):
    long, short = "a red circle moving left on a white background", "a red star"
    full = len(TOKENIZER.encode(long)) + 1
    with caplog.at_level(logging.WARNING):
        exact = TOKENIZER([long, short], full)
        assert not caplog.records
        cut = TOKENIZER([long, short, long], full - 3)
    (record,) = caplog.records
    assert "2 of 3 captions" in record.getMessage() and "6 tokens lost" in record.getMessage()
    assert cut[0, -1] == 1
    np.testing.assert_array_equal(cut[0, :-1], exact[0, : full - 4])
    np.testing.assert_array_equal(cut[1], exact[1, : full - 3])


def test_one_token_is_the_end():
    np.testing.assert_array_equal(TOKENIZER(["a red circle", ""], 1), [[1], [1]])
    with pytest.raises(ValueError, match="num_tokens"):
        TOKENIZER(["a"], 0)


def test_digest_names_the_model():
    other = train_tokenizer(CAPTIONS[:-40], 320)
    assert train_tokenizer(CAPTIONS, 400) == MODEL
    assert Tokenizer(model=MODEL).digest == TOKENIZER.digest
    assert Tokenizer(model=other).digest != TOKENIZER.digest
    assert len(TOKENIZER.digest) == 64


def test_file_and_pickle(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(MODEL)
    loaded = load_tokenizer(tmp_path / "tokenizer.model")
    assert loaded == TOKENIZER
    for copy in (loaded, pickle.loads(pickle.dumps(TOKENIZER))):
        np.testing.assert_array_equal(copy(CAPTIONS, 20), TOKENIZER(CAPTIONS, 20))


def test_bad_models_are_refused(tmp_path):
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"bad\.model.*not a sentencepiece model"):
        load_tokenizer(tmp_path / "bad.model")
    (tmp_path / "empty.model").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.model: model: empty, not a sentencepiece model"):
        load_tokenizer(tmp_path / "empty.model")
    with pytest.raises(ValueError, match="absent"):
        load_tokenizer(tmp_path / "absent.model")
    with pytest.raises(ValueError, match="vocab_size"):
        train_tokenizer(CAPTIONS, 100)


@pytest.mark.parametrize(
    "ids, message", [({}, "</s> has id 2"), ({"eos_id": -1}, "model: has no </s>")]
)
def test_models_of_another_family_are_refused(ids, message):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
        **ids,
    )
    with pytest.raises(ValueError, match=message):
        Tokenizer(model=model.getvalue())
