"""Embeds captions once, for training to read: a folder of ArrayRecord files.

Training with --config.text.cache=DIR joins them to clips by caption. A run that was stopped goes on
when it is given the same flags again.
"""

import sys

from absl import flags

from imagen_video.cli import distributed
from imagen_video.config import CommandFlags, define_config, to_record
from imagen_video.files import local_path


def define(flag_values: CommandFlags) -> None:
    """Defines --config, --captions, --field, --out, the sizes and --distributed."""
    fv = {"flag_values": flag_values}
    define_config(
        flag_values,
        required=True,
        help="configs/stages/NAME.py[:SIZE] of a stage that will be trained; any of a cascade: it"
        " names the text model and the length of captions.",
    )
    flags.DEFINE_string(
        "captions",
        None,
        "A file of captions: .txt, one a line; .jsonl; .csv or .tsv with a header; .parquet. Or the"
        " folder of a prepared dataset. By default those of the config's own dataset.",
        **fv,
    )
    flags.DEFINE_string("field", "caption", "Column or entry that holds the caption.", **fv)
    flags.DEFINE_string("out", None, "Folder for the embeddings.", required=True, **fv)
    flags.DEFINE_integer("batch_size", 32, "Captions encoded at a time.", **fv)
    flags.DEFINE_integer("shard_captions", 2048, "Captions of a file.", **fv)
    flags.DEFINE_boolean("share_of_peak", False, "Compare with a large matrix product.", **fv)
    distributed.define(flag_values)


def run(flag_values: CommandFlags) -> None:
    """Embeds all captions that are not embedded yet."""
    distributed.join(flag_values)
    from imagen_video.cascade.embedding import embed_captions
    from imagen_video.cli.compilation_cache import use_compilation_cache
    from imagen_video.cli.progress_bars import CaptionBar
    from imagen_video.data.captions import read_captions
    from imagen_video.profiling.encoder_speed import share_of_peak
    from imagen_video.sharding.layout import local_layout
    from imagen_video.text.text_model import load_text_model
    from imagen_video.training.stage_run import StageRun, training_captions

    out = local_path(flag_values.out)
    use_compilation_cache()
    stage_run = to_record(StageRun, flag_values.config)
    if flag_values.captions is None:
        captions = training_captions(stage_run)
    else:
        # Read to the end first: a bad line must cost no loading of a large encoder.
        captions = list(read_captions(flag_values.captions, field=flag_values.field))
    text = load_text_model(
        stage_run.text, num_tokens=stage_run.stage.text_tokens, layout=local_layout()
    )
    with CaptionBar() as bar:
        report = embed_captions(
            captions,
            text,
            out,
            batch_size=flag_values.batch_size,
            shard_captions=flag_values.shard_captions,
            progress=bar,
        )
    speed = report.tokens / max(report.seconds, 1e-9)
    kept = f", {report.kept} from before" if report.kept else ""
    print(
        f"{report.captions} captions embedded{kept}: {report.tokens} tokens, {speed:.0f} tokens/s",
        file=sys.stderr,
    )
    if flag_values.share_of_peak:
        print(share_of_peak(text.encoder.config, speed), file=sys.stderr)
    print(out)
