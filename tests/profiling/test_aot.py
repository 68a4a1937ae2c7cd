"""The real TPU compiler on real programs, without a TPU."""

import ctypes.util
import json
import math
import os
import subprocess
import sys

import pytest
from fake_devices import printed_on

from imagen_video.cascade.stage import Stage
from imagen_video.config import load_config, to_record
from imagen_video.profiling.aot import environment, run_compiler
from imagen_video.profiling.description import describe_stage
from imagen_video.profiling.slices import Slice

pytest.importorskip("libtpu")


def compile_stage(*arguments):
    command = [sys.executable, "-m", "imagen_video", "compile", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


def described(name, size="tiny"):
    config = load_config(f"configs/stages/{name}.py:{size}")
    return describe_stage(to_record(Stage, config.stage, where=name))


@pytest.mark.parametrize("preloaded", [None, "libother.so"])
def test_a_faster_allocator_is_preloaded_where_there_is_one(monkeypatch, preloaded):
    base = {"HOME": "/"} | ({"LD_PRELOAD": preloaded} if preloaded else {})

    def with_libraries(**libraries):
        monkeypatch.setattr(ctypes.util, "find_library", libraries.get)
        return environment(base)

    first = [preloaded] if preloaded else []
    found = with_libraries(jemalloc="libjemalloc.so.2", tcmalloc="libtcmalloc.so.4")
    assert found["LD_PRELOAD"].split(":") == [*first, "libjemalloc.so.2"]
    assert "thp:always" in found["MALLOC_CONF"]
    base["MALLOC_CONF"] = "narenas:2"
    assert with_libraries(jemalloc="libjemalloc.so.2")["MALLOC_CONF"] == "narenas:2"
    del base["MALLOC_CONF"]
    found = with_libraries(tcmalloc="libtcmalloc.so.4")
    assert "MALLOC_CONF" not in found
    assert found["LD_PRELOAD"].split(":") == [*first, "libtcmalloc.so.4"]
    assert with_libraries().get("LD_PRELOAD") == preloaded


ON_FRAMES = ("--config.sharding.mesh.fsdp=1", "--config.sharding.mesh.context=-1")


def test_an_sr_stage_is_sampled_by_a_slice(tmp_path):
    code, found, errors = compile_stage(
        "--config=configs/stages/ssr1.py:tiny",
        "--slice=v5e:2x2",
        "--program=sample",
        "--ceiling",
        f"--hlo={tmp_path / 'program.txt'}",
        *ON_FRAMES,
    )
    assert code == 0, errors[-2000:]
    assert found["fits"] and found["missing_gib"] is None
    assert found["hbm_gib"] == 16.0
    compiled = found["compiled"]
    stage = described("ssr1")
    # Parameters, in float32, are on every chip.
    assert 4 * stage.params / 2**30 < compiled["arguments_gib"] < 0.1
    assert 0 <= compiled["temporaries_gib"] < 1
    # Two evaluations, for the stage is guided; describe counts padded taps as well.
    assert 0.8 < found["model_tflops"] * 1e12 / (2 * stage.flops_per_eval) < 1
    assert 1 < compiled["repeated"] < 1.25
    assert list(compiled["collective_gib"]) == ["collective-permute"]
    assert 0 < compiled["seconds"] < 0.01
    assert {"products", "pointwise", "moves"} < compiled["seconds_of"].keys()
    assert sum(compiled["seconds_of"].values()) == pytest.approx(compiled["seconds"])
    peak = 4 * 197 * compiled["seconds"]
    assert compiled["share_of_peak"] == pytest.approx(found["model_tflops"] / peak)
    assert compiled["share_of_peak"] < compiled["ceiling"] < 1
    assert (tmp_path / "program.txt").read_text().startswith("HloModule")


def test_a_base_stage_is_sampled_by_a_slice_that_cuts_its_parameters():
    code, found, errors = compile_stage(
        "--config=configs/stages/base.py:tiny",
        "--slice=v5e:2x2",
        "--program=sample",
        "--clips=4",
        # Not as the recipe of this slice, which cuts frames.
        "--config.sharding.mesh.fsdp=-1",
        "--config.sharding.mesh.context=1",
    )
    assert code == 0, errors[-2000:]
    compiled = found["compiled"]
    stage = described("base")
    # Two evaluations for each clip; describe counts padded taps, many on grids of 3x5.
    assert 0.75 < found["model_tflops"] * 1e12 / (4 * 2 * stage.flops_per_eval) < 1
    assert compiled["repeated"] == pytest.approx(1, abs=0.15)
    # Nearly all parameters are cut in 4; a chip sends its part three times, in two or four bytes.
    sent = compiled["collective_gib"]["all-gather"] * 2**30
    assert 1.7 < sent / (3 * stage.params / 4) < 4.5


@pytest.mark.slow
def test_a_training_step_is_three_forward_passes_and_its_products_are_timed_alone():
    code, found, errors = compile_stage(
        "--config=configs/stages/tsr1.py:tiny",
        "--slice=v5e:2x2",
        "--program=train",
        "--ceiling",
        "--config.train.batch_size=8",
        # As at full size: products alone are kept, the rest is computed again.
        "--config.stage.unet.remat=products",
    )
    assert code == 0, errors[-2000:]
    stage, compiled = described("tsr1"), found["compiled"]
    assert found["rows"] == 8
    # describe counts padded taps as well.
    assert 0.75 < found["model_tflops"] * 1e12 / (3 * 8 * stage.flops_per_eval) < 1
    # Recomputed attention weighs more than at full size.
    assert 1 < compiled["repeated"] < 1.4
    # No bound for a network this small: within the program its products' operands stay on the chip.
    assert 0 < compiled["ceiling"] < 1
    assert any(kind in compiled["collective_gib"] for kind in ("reduce-scatter", "all-reduce"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tsr1", "ssr2", "tsr2", "tsr3", "ssr3"])
def test_every_other_stage_is_sampled_by_a_slice(name):
    config = f"--config=configs/stages/{name}.py:tiny"
    code, found, errors = compile_stage(config, "--slice=v5e:2x2", "--program=sample", *ON_FRAMES)
    assert code == 0, errors[-2000:]
    compiled, stage = found["compiled"], described(name)
    assert found["fits"] and compiled["temporaries_gib"] < 1
    # One evaluation, for none of these is guided.
    assert 0.75 < found["model_tflops"] * 1e12 / stage.flops_per_eval < 1
    assert 0.99 < compiled["repeated"] < 1.25
    assert 0 < compiled["share_of_peak"] < 1


@pytest.mark.slow
def test_the_full_base_is_sampled_by_the_slice_of_its_recipe():
    code, found, errors = compile_stage(
        "--config=configs/stages/base.py", "--slice=v5p:2x2x1", "--program=sample"
    )
    assert code == 0, errors[-2000:]
    compiled, stage = found["compiled"], described("base", "full")
    # All parameters, in two bytes each, are on every chip.
    assert 1 < compiled["arguments_gib"] / (2 * stage.params / 2**30) < 1.05
    assert found["fits"] and found["hbm_gib"] == 95.0 and found["host_gib"] < 16
    # Guided, so two evaluations; describe counts padded taps as well.
    assert 0.9 < found["model_tflops"] * 1e12 / (2 * stage.flops_per_eval) < 1
    assert 0.99 < compiled["repeated"] < 1.15


@pytest.mark.slow
def test_a_scanned_stage_costs_what_the_unrolled_one_does():
    def cost(scan):
        code, found, errors = compile_stage(
            "--config=configs/stages/ssr1.py:tiny",
            "--slice=v5e:2x2",
            "--program=sample",
            "--clips=4",
            "--config.stage.unet.num_blocks=(4,3)",
            f"--config.stage.unet.scan_blocks={scan}",
        )
        assert code == 0, errors[-2000:]
        return found["compiled"]

    scanned, unrolled = cost(True), cost(False)
    assert scanned["tflops"] == pytest.approx(unrolled["tflops"], rel=0.01)
    sent, wanted = (sum(c["collective_gib"].values()) for c in (scanned, unrolled))
    assert sent == pytest.approx(wanted, rel=0.05) and sent > 0
    # Two programs are scheduled differently; a body counted once would be 2 to 3 times off.
    assert scanned["seconds"] == pytest.approx(unrolled["seconds"], rel=0.35)


@pytest.mark.slow
def test_the_text_encoder_is_split_without_repeating_work():
    code, found, errors = compile_stage(
        "--config=configs/stages/base.py",
        "--slice=v5e:2x4",
        "--program=encode",
        "--clips=64",
        "--config.sharding.mesh.fsdp=1",
        "--config.sharding.mesh.tensor=8",
    )
    assert code == 0, errors[-2000:]
    # T5-XXL has 4.63 billion parameters without its table: 2 FLOPs each for 64 x 128 tokens.
    assert found["model_tflops"] == pytest.approx(2 * 4.63e9 * 64 * 128 / 1e12, rel=0.02)
    assert found["compiled"]["repeated"] == pytest.approx(1, abs=0.02)
    assert found["compiled"]["arguments_gib"] == pytest.approx(4.76e9 * 2 / 8 / 2**30, rel=0.5)


def test_mistakes_end_in_one_line_and_exit_code_2():
    for arguments in (
        ("--config=configs/stages/ssr1.py:tiny", "--slice=v5e:2x2x2", "--program=sample"),
        (
            "--config=configs/stages/ssr1.py:tiny",
            "--slice=v5e:2x2",
            "--program=sample",
            "--config.sharding.mesh.fsdp=3",
        ),
        ("--config=configs/stages/ssr1.py:tiny", "--slice=v5e:2x2", "--program=encode"),
    ):
        code, found, errors = compile_stage(*arguments)
        assert code == 2, errors
        assert found is None
        assert "imagen-video: " in errors.strip().splitlines()[-1]


def test_a_compiler_that_is_killed_is_a_mistake_with_a_name(tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nkill -9 $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(ValueError, match=r"the compiler was ended by SIGKILL: .* too little"):
        run_compiler(["compile"], {})


@pytest.mark.parametrize("where", ["v5p:4x4x4", "v5e:16x16", "v5e:4x4", "v4:2x2x4", "v6e:8x8"])
def test_every_host_of_a_slice_reads_its_part_of_a_batch(monkeypatch, where):
    for name, value in environment().items():
        if os.environ.get(name) != value:
            monkeypatch.setenv(name, value)
    printed = printed_on(
        1,
        f"""
        from imagen_video.profiling.aot import slice_layout
        from imagen_video.profiling.slices import Slice
        from imagen_video.sharding.layout import ShardingConfig
        from imagen_video.sharding.mesh import MeshShape

        # No whole axes of the torus make up 8 of v5p:4x4x4, or 16 of v6e:8x8.
        for fsdp in -1, 4, 8, 16:
            mesh = MeshShape(data=1 if fsdp == -1 else -1, fsdp=fsdp)
            layout = slice_layout(Slice.parse({where!r}), ShardingConfig(mesh=mesh))
            hosts = {{device.process_index for device in layout.mesh.devices.flat}}
            parts = [part for host in hosts for part in layout.parts_of_process(host)]
            assert sorted(parts) == list(range(layout.mesh.size)), parts
            print(len(hosts))
        """,
    )
    assert printed.split() == [str(math.prod(Slice.parse(where).shape) // 4)] * 4


@pytest.mark.slow
def test_too_many_clips_do_not_fit():
    stage = ("--config=configs/stages/ssr1.py:tiny", "--slice=v5e:2x2", "--program=sample")
    code, found, errors = compile_stage(*stage, "--clips=20000")
    assert code == 1, errors[-2000:]
    assert not found["fits"]
    assert found["compiled"] is None
    # z_t and the low-res clip alone, float32, on one of 4 chips.
    wanted = 2 * 20000 * 16 * 24 * 40 * 3 * 4 / 4 / 2**30
    assert found["missing_gib"] > wanted - 16


@pytest.mark.slow
def test_a_single_tpu_is_laid_out_as_several_are(monkeypatch):
    for name, value in environment().items():
        if os.environ.get(name) != value:
            monkeypatch.setenv(name, value)
    printed_on(
        1,
        """
        from jax.experimental import topologies
        from imagen_video.sharding.layout import ShardingConfig, layout_if_needed

        device = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]
        assert layout_if_needed(ShardingConfig(), [device]).on_tpu
        print("a layout")
        """,
    )
