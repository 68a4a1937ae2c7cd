"""A tokenizer and an encoder that do not go together, or do not exist, are refused at loading."""

import pathlib

import pytest

from imagen_video.text.text_model import TextPaths, load_text_model

HF = pathlib.Path(__file__).parents[1] / "fixtures" / "t5_hf"


@pytest.mark.parametrize("values", [True, False])
def test_a_tokenizer_of_a_larger_vocabulary_than_the_encoders_is_refused(values):
    with pytest.raises(ValueError, match=r"tokenizer embedded: \d+ pieces, more than the 64 rows"):
        load_text_model(TextPaths(encoder=str(HF)), num_tokens=8, values=values)


@pytest.mark.parametrize("field", ["encoder", "tokenizer"])
@pytest.mark.parametrize("path", ["", "https://host/t5"])
def test_an_address_that_is_none_is_refused(field, path):
    empty = rf"text\.{field}: its file or folder has an empty name"
    with pytest.raises(ValueError, match="https://host/t5: must be a path on" if path else empty):
        load_text_model(TextPaths(**{field: path}), num_tokens=8)
