"""train_cascade.sh, run whole: it starts the scripts that train a stage."""

import os
import shlex
import signal

import pytest
from launch_checkout import STAGES, commands_of, flag, status_of


def cascade(*options: str, stages: str) -> list[str]:
    return [
        *("train_cascade.sh", "--workdir=gs://bucket/cascade", f"--stages={stages}", *options),
        *("--", "--zone=us-east5-a", "--poll_seconds=0.02", "--", "--config.train.seed=1"),
    ]


def test_cascade_trains_each_stage_on_its_own_slice(checkout):
    checkout.plan(
        attempts={
            "imagen-video-tsr1": [{"end": 1}],
            "imagen-video-ssr3": [{"end": "preempt"}, {}],
        }
    )
    result = checkout.run(
        *cascade(
            "--slice=v5e:8x8", "--slice=ssr3=v5p:4x4x8", "--size=full", stages="base,tsr1,ssr3"
        )
    )
    assert status_of(result) == 1
    slices = {call[5]: flag(call, "--accelerator-type") for call in checkout.calls("create")}
    names = ("imagen-video-base", "imagen-video-tsr1", "imagen-video-ssr3")
    assert slices == dict(zip(names, ("v5litepod-64", "v5litepod-64", "v5p-256")))
    assert not checkout.slices()
    for stage in ("base", "tsr1", "ssr3"):
        (training,) = {
            tuple(t) for t in checkout.trainings() if f"gs://bucket/cascade/{stage}" in t
        }
        assert f"configs/stages/{stage}.py:full" in training
        assert training[-1] == "--config.train.seed=1"
        assert "step 2" in checkout.logs(f"imagen-video/{stage}.log")
    table = [line.split() for line in result.stdout.splitlines()]
    assert table[0] == ["stage", "slice", "result", "minutes", "log"]
    assert [row[:3] for row in table[1:]] == [
        ["base", "v5e:8x8", "trained"],
        ["tsr1", "v5e:8x8", "failed:"],
        ["ssr3", "v5p:4x4x8", "trained"],
    ]


def test_cascade_stopped_by_ctrl_c_stops_all(checkout):
    checkout.plan(attempts=[{"end": "hang"}])
    process = checkout.start(*cascade("--slice=v4:2x2x1", stages="base,ssr1"))
    checkout.wait_for_trainings(2)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert output.count(" stopped ") == 2 and not checkout.slices()
    for stage in ("base", "ssr1"):
        assert (checkout.ledger / f"imagen-video-{stage}/saved_0").exists()


@pytest.mark.parametrize("backend", ["tpu_pod", "xpk"])
def test_cascade_dry_run_prints_the_commands_of_all_seven(checkout, backend):
    place = {"tpu_pod": "--zone=us-east5-a", "xpk": "--cluster=tpus"}[backend]
    arguments = ["--workdir=gs://b/c", "--slice=v6e:8x8", f"--backend={backend}", "--dry_run"]
    result = checkout.run("train_cascade.sh", *arguments, "--", place)
    creations = [command for command in commands_of(result) if "create" in command]
    assert len(creations) == 7
    for stage, line in zip(STAGES, [x for x in result.stdout.splitlines() if x[0] == "#"]):
        command = shlex.split(line[2:])
        assert command[:2] == ["bash", f"launch/{backend}.sh"]
        printed = checkout.run(f"{backend}.sh", "--dry_run", *command[2:])
        assert printed.stdout in result.stdout and f"gs://b/c/{stage}" in printed.stdout
