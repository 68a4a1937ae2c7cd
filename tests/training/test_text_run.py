"""A text encoder's training goes on with its own captions alone."""

import dataclasses
import json

import pytest
from micro_cascade import BASE, stage_run

from imagen_video import records
from imagen_video.config import load_config, to_record
from imagen_video.training.text_run import TextRun, train_text


def test_a_folder_of_another_run_is_refused_before_a_tokenizer_is_made(tmp_path):
    run = to_record(TextRun, load_config("configs/text_encoder.py"))
    others = dataclasses.replace(run, data=dataclasses.replace(run.data, image_share=0.125))
    for begun, message in (
        (stage_run(BASE, num_steps=1), r"config\.json: is of no training of a text encoder"),
        (others, r"config\.json: was begun with data\.image_share 0\.125, now it is"),
    ):
        config = {"run": records.to_dict(begun)}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=message):
            train_text(run, workdir=str(tmp_path))
        assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
