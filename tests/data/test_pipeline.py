"""What a position of the run holds, whoever reads it and however often it is restarted."""

import dataclasses
import gc
import json
import logging
import multiprocessing
import os
import signal

import ml_dtypes
import numpy as np
import pytest

from imagen_video.data.clip_source import Records
from imagen_video.data.pipeline import Batches, PipelineConfig
from imagen_video.data.transforms import RandomWindow


@dataclasses.dataclass(frozen=True)
class NumberedClips:
    """Clip i is grey level i, says so in its caption, and marks one corner with a random draw."""

    count: int
    frames: int = 4
    is_image: bool = False
    damaged: frozenset[int] = frozenset()

    def __len__(self):
        return self.count

    def read(self, index, *, rng):
        mark = rng.integers(0, 256)
        if index in self.damaged:
            raise OSError("cut short")
        video = np.full((1 if self.is_image else self.frames, 4, 6, 3), index, np.uint8)
        video[:, 0, 0] = mark
        return {"video": video, "caption": f"{index}", "is_image": self.is_image}


def tokenize(captions):
    """One token, the caption's number plus 1, and the number again in another type and shape."""
    numbers = np.array([int(c) for c in captions])
    embedded = np.broadcast_to(numbers[:, None, None], (len(numbers), 2, 3))
    return {
        "tokens": (numbers[:, None] + 1).astype(np.int32),
        "text_emb": embedded.astype(ml_dtypes.bfloat16),
    }


def levels(batch):
    """Which record each frame shows, Int[b f]."""
    return np.round((batch["video"][..., 1, 1, 0] + 1) * 127.5).astype(int)


def make(*, count=10, images=None, process=(0, 1), damaged=frozenset(), **config):
    image_source = None if images is None else NumberedClips(images, is_image=True)
    row_shards = config.setdefault("row_shards", process[1])
    return Batches(
        PipelineConfig(**config),
        caption_fn=tokenize,
        video_source=NumberedClips(count, damaged=frozenset(damaged)),
        image_source=image_source,
        shards=range(row_shards)[process[0] :: process[1]],
    )


def take(batches, n):
    taken = [next(batches) for _ in range(n)]
    batches.close()
    return taken


def assert_equal_batches(a, b):
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_array_equal(x[name], y[name], err_msg=name)


def test_each_epoch_holds_every_record_once_in_another_order():
    batches = take(make(batch_size=5, num_threads=0), 6)
    order = np.concatenate([levels(batch)[:, 0] for batch in batches]).reshape(3, 10)
    for epoch in order:
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in order}) == 3
    assert not np.array_equal(order[0], levels_of_run(seed=1))


def levels_of_run(**config):
    batches = take(make(batch_size=5, num_threads=0, **config), 2)
    return np.concatenate([levels(batch)[:, 0] for batch in batches])


def test_batch_k_holds_positions_kb_to_kb_plus_b():
    small = np.concatenate([b["video"] for b in take(make(batch_size=2, num_threads=0), 6)])
    large = np.concatenate([b["video"] for b in take(make(batch_size=6, num_threads=0), 2)])
    np.testing.assert_array_equal(small, large)


@pytest.mark.parametrize("speed", [{"num_threads": 3, "prefetch": 4}, {"num_workers": 2}])
def test_threads_and_workers_change_nothing(speed):
    config = {"batch_size": 4, "images": 7, "image_share": 0.5, "frames": 4}
    assert_equal_batches(take(make(**config, num_threads=0), 5), take(make(**config, **speed), 5))


def test_workers_read_on_when_the_whole_job_is_told_to_stop_and_end_with_their_batches():
    config = {"batch_size": 2, "prefetch": 1}
    wanted = take(make(**config, num_threads=0), 9)
    batches = make(**config, num_workers=2)
    # The first of each: before it a worker may still be starting, and end at once.
    first = [next(batches) for _ in range(2)]
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGINT)
        os.kill(worker.pid, signal.SIGTERM)
    # More than have been read ahead: training goes on to its next step, and saves.
    assert_equal_batches(first + [next(batches) for _ in range(7)], wanted)
    assert all(worker.is_alive() for worker in workers)
    del batches
    gc.collect()
    assert not any(worker.is_alive() for worker in workers)


def captions_by_frame(batches):
    """(row, frame) to (record shown, record its caption names) over all parts of a global batch."""
    tokens = np.concatenate([b["tokens"] for b in batches])
    ids = np.concatenate([b["caption_id"] for b in batches])
    text_emb = np.concatenate([b["text_emb"] for b in batches])
    assert text_emb.dtype == ml_dtypes.bfloat16
    read = {}
    for batch in batches:
        for row, shown, index in zip(batch["row"], levels(batch), batch["caption_index"]):
            for frame, (record, slot) in enumerate(zip(shown, index)):
                assert (text_emb[slot] == record).all()
                read[row, frame] = (record, tokens[slot, 0] - 1, ids[slot])
    return read


@pytest.mark.parametrize("processes", [2, 3])
def test_process_count_changes_nothing(processes):
    config = {"batch_size": 6, "images": 9, "image_share": 0.5, "frames": 4, "num_threads": 0}
    whole = make(**config)
    parts = [make(**config, process=(p, processes)) for p in range(processes)]
    for k in (0, 3):
        split = [part[k] for part in parts]
        for name in ("video", "row", "is_image"):
            joined = np.concatenate([b[name] for b in split])
            np.testing.assert_array_equal(joined, whole[k][name])
        # The slots differ, what each frame reads does not.
        assert captions_by_frame(split) == captions_by_frame([whole[k]])


@pytest.mark.parametrize("microbatches", [1, 2])
def test_processes_need_not_read_neighbouring_shards(microbatches):
    config = {"batch_size": 12, "images": 9, "image_share": 0.5, "frames": 4, "num_threads": 0}
    config |= {"row_shards": 6, "microbatches": microbatches}
    whole, axis = make(**config), int(microbatches > 1)
    parts = [make(**config, process=(p, 2)) for p in range(2)]  # even and odd shards
    for k in (0, 3):
        split = [part[k] for part in parts]
        assert whole[k].keys() == split[0].keys()
        for name, expected in whole[k].items():
            shards = [np.split(batch[name], 3, axis) for batch in split]
            joined = [shards[i % 2][i // 2] for i in range(6)]
            np.testing.assert_array_equal(np.concatenate(joined, axis), expected, err_msg=name)


def test_microbatches_are_parts_of_the_same_batch():
    config = {"batch_size": 8, "images": 9, "image_share": 0.25, "frames": 4, "num_threads": 0}
    whole, cut = make(**config)[1], make(**config, microbatches=2)[1]
    assert cut["video"].shape == (2, 4, 4, 4, 6, 3)
    np.testing.assert_array_equal(np.concatenate(cut["video"]), whole["video"])
    np.testing.assert_array_equal(cut["row"].ravel(), np.arange(8))
    reads = [captions_by_frame([{name: x[u] for name, x in cut.items()}]) for u in range(2)]
    assert reads[0] | reads[1] == captions_by_frame([whole])


def test_mixed_batches_have_one_shape_and_each_frame_its_caption():
    config = {"batch_size": 8, "image_share": 0.3, "frames": 4, "num_threads": 0}
    batches = take(make(images=20, **config), 5)
    for batch in batches:
        # round(0.3 * 8) = 2 packed rows of 4 captions, 6 videos of one.
        assert batch["tokens"].shape == (2 * 4 + 6, 1)
        assert batch["video"].shape == (8, 4, 4, 6, 3)
        np.testing.assert_array_equal(batch["is_image"], batches[0]["is_image"])
        assert batch["is_image"].sum() == 2
        for (row, frame), (record, named, caption_id) in captions_by_frame([batch]).items():
            assert record == named
            assert caption_id == row * 4 + (frame if batch["is_image"][row] else 0)
    images = np.concatenate([levels(b)[b["is_image"]].ravel() for b in batches])
    assert sorted(images[:20]) == list(range(20))  # the images' own epoch


def test_ragged_shards_are_padded_to_one_shape():
    config = {"batch_size": 6, "images": 9, "image_share": 0.5, "frames": 4, "num_threads": 0}
    one, two = (make(**config, process=(p, 2))[0] for p in range(2))
    assert one["is_image"].sum() != two["is_image"].sum()
    assert one["tokens"].shape == two["tokens"].shape == (9, 1)
    used = np.unique(np.concatenate([one["caption_index"], two["caption_index"]]))
    unread = np.setdiff1d(np.arange(18), used)
    tokens = np.concatenate([one["tokens"], two["tokens"]])[:, 0]
    ids = np.concatenate([one["caption_id"], two["caption_id"]])
    assert len(unread) == 3 and not tokens[unread].any() and (ids[unread] == -1).all()


def test_a_run_of_videos_has_one_caption_a_row_and_no_index():
    batch = make(batch_size=4, num_threads=0)[0]
    assert batch.keys() == {"video", "tokens", "text_emb", "row"}
    np.testing.assert_array_equal(batch["tokens"][:, 0] - 1, levels(batch)[:, 0])


def test_state_is_json_and_resumes_exactly_under_other_threads():
    config = {"batch_size": 4, "images": 7, "image_share": 0.5, "frames": 4}
    run = make(**config, damaged={3})
    undisturbed = [next(run) for _ in range(3)]
    state = json.loads(json.dumps(run.get_state()))
    later = [next(run) for _ in range(4)]
    total = run.num_damaged
    run.close()

    again = make(**config, damaged={3}, num_threads=0)
    again.set_state(state)
    assert_equal_batches(take(again, 4), later)
    assert again.num_damaged == total
    assert not np.array_equal(undisturbed[0]["video"], later[0]["video"])


@pytest.mark.parametrize("speed", [{"num_threads": 0}, {"num_workers": 2}])
def test_echo_hands_out_each_batch_again_and_resumes_amid(speed):
    config = {"batch_size": 4, "damaged": {3}}
    plain = make(**config, num_threads=0)
    batches = take(plain, 4)
    echoed = [batch for batch in batches for _ in range(3)]
    run = make(**config, echo=3, **speed)
    assert_equal_batches(take(run, 12), echoed)
    assert run.num_damaged == plain.num_damaged > 0
    assert_equal_batches([run[k] for k in range(12)], echoed)

    run = make(**config, echo=3, **speed)
    first = take(run, 7)  # The second echo of the third batch is next.
    again = make(**config, echo=3, num_threads=0)
    again.set_state(run.get_state())
    assert_equal_batches(first + take(again, 5), echoed)
    assert again.num_damaged == plain.num_damaged
    with pytest.raises(ValueError, match="checkpoint's run had"):
        make(**config).set_state(run.get_state())


def test_a_process_may_read_one_row():
    rows = take(make(batch_size=1), 3)
    assert_equal_batches(
        [{name: x[:1] for name, x in take(make(batch_size=3), 1)[0].items()}], rows[:1]
    )


def test_state_of_other_data_is_refused():
    state = make(batch_size=4).get_state()
    for other in (make(batch_size=2), make(batch_size=4, seed=1), make(batch_size=4, count=11)):
        with pytest.raises(ValueError, match="checkpoint's run had"):
            other.set_state(state)


def test_a_damaged_record_is_replaced_by_the_next_good_position(caplog):
    good = np.concatenate([levels(b)[:, 0] for b in take(make(batch_size=5, num_threads=0), 4)])
    damaged = {int(good[2]), int(good[3]), int(good[9])}
    run = make(batch_size=5, num_threads=0, damaged=damaged)
    with caplog.at_level(logging.WARNING, logger="absl"):
        batches = take(run, 3)
    seen = np.concatenate([levels(batch)[:, 0] for batch in batches])
    wanted = [next(r for r in good[p:] if r not in damaged) for p in range(15)]
    np.testing.assert_array_equal(seen, wanted)
    assert wanted[2] == wanted[3] == good[4]
    # Counted and logged: position 2 passes over two records, later ones over one or more.
    passed = sum(next(n for n, r in enumerate(good[p:]) if r not in damaged) for p in range(15))
    assert run.num_damaged == passed >= 4
    assert sum("OSError: cut short" in line for line in caplog.messages) == passed
    # The same on every process.
    parts = [make(batch_size=10, damaged=damaged, process=(p, 2), num_threads=0) for p in (0, 1)]
    split = np.concatenate([levels(part[0])[:, 0] for part in parts])
    np.testing.assert_array_equal(split, wanted[:10])


def test_a_source_of_damaged_records_ends_with_one_error():
    run = make(count=5, batch_size=2, damaged=range(5), max_damaged=7, num_threads=0)
    with pytest.raises(ValueError, match="7 damaged records in a row; video record"):
        next(run)


def test_records_with_transforms_draw_from_the_position():
    clips = [
        {"video": np.full((9, 8, 8, 3), i, np.uint8), "caption": str(i), "is_image": False}
        for i in range(6)
    ]
    source = Records(records=clips, transforms=(RandomWindow(frames=4, crop=(4, 4)),))
    config = PipelineConfig(batch_size=3, num_threads=0)
    batches = Batches(config, caption_fn=tokenize, video_source=source)
    assert next(batches)["video"].shape == (3, 4, 4, 4, 3)


@pytest.mark.parametrize(
    "config, word",
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 4, "image_share": 1.5}, "image_share"),
        ({"batch_size": 4, "image_share": 0.1}, "image_share"),
        ({"batch_size": 4, "image_share": 0.5}, "image_source"),
        ({"batch_size": 4, "microbatches": 3}, "batch_size"),
        ({"batch_size": 4, "row_shards": 3}, "batch_size"),
        ({"batch_size": 4, "row_shards": 0}, "row_shards"),
        ({"batch_size": 4, "row_shards": 2, "process": (2, 3)}, "shards"),
        ({"batch_size": 4, "count": 0}, "video_source"),
    ],
)
def test_impossible_configs_are_refused(config, word):
    with pytest.raises(ValueError, match=word):
        make(**config)


def test_packed_rows_need_the_frames_of_the_videos():
    run = make(batch_size=4, images=7, image_share=0.5, frames=3, num_threads=0)
    with pytest.raises(ValueError, match="differ in shape"):
        next(run)
