"""A checkout in which the launch scripts run against stand-ins for gcloud, xpk, kubectl and Slurm.

The stand-ins refuse any flag or value that the real programs' help does not have, run what is sent
to the machines in a folder for each, and play a plan: see standins/.
"""

import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import time

HERE = pathlib.Path(__file__).parent
LAUNCH = HERE.parents[1] / "launch"
STAGES = ("base", "tsr1", "ssr1", "ssr2", "tsr2", "tsr3", "ssr3")

TRAINING = ["--config=configs/stages/base.py", "--workdir=gs://bucket/base", "--slice=v5p:4x4x4"]
POD = ["tpu_pod.sh", *TRAINING, "--zone=us-east5-a", "--poll_seconds=0.02"]
XPK = ["xpk.sh", *TRAINING, "--cluster=tpus", "--poll_seconds=0.02"]
SLURM = ["slurm.sbatch", "--config=configs/stages/base.py", "--workdir=/shared/base"]


class Checkout:
    """A small copy of the repository, from which scripts are run with the stand-ins on PATH."""

    def __init__(self, root: pathlib.Path, ledger: pathlib.Path):
        self.root, self.ledger, self.started = root, ledger, []
        self.environment = {
            "PATH": f"{HERE / 'standins'}:{root.parent}/machine:/usr/bin:/bin",
            "HOME": str(ledger),
            "STANDINS": str(ledger),
            "MACHINE": f"{root.parent}/machine",
        }

    def plan(self, **plan) -> None:
        """Writes what the stand-ins play: a file of words for every leaf."""

        def write(path: pathlib.Path, value) -> None:
            if isinstance(value, list) and (not value or isinstance(value[0], dict)):
                value = dict(enumerate(value))
            if isinstance(value, dict):
                path.mkdir(parents=True, exist_ok=True)
                for name, item in value.items():
                    write(path / str(name), item)
            else:
                words = value if isinstance(value, list | tuple) else [value]
                path.write_text("".join(f"{word}\n" for word in words))

        if isinstance(plan.get("attempts"), list):
            plan["attempts"] = {"all": plan["attempts"]}
        write(self.ledger / "plan", plan)

    def start(self, script: str, *arguments: str, **environment: str) -> subprocess.Popen:
        process = subprocess.Popen(
            ["bash", f"launch/{script}", *arguments],
            cwd=self.root,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # As in a terminal, also where the tests run in the background.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        self.started.append(process)
        return process

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        process = self.start(script, *arguments, **environment)
        output, errors = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def calls(self, *words: str) -> list[list[str]]:
        """Returns the stand-ins' calls so far that have all of `words`."""
        calls = self._lines("calls")
        return [call for call in calls if set(words) <= set(call)]

    def trainings(self) -> list[list[str]]:
        """Returns the arguments of every `imagen-video` that ran on a machine."""
        return self._lines("trainings")

    def logs(self, path: str) -> str:
        return (self.root / "runs" / path).read_text()

    def slices(self) -> list[str]:
        """Returns the slices that cost money now."""
        return sorted(vms.parent.name for vms in self.ledger.glob("*/vms"))

    def wait_for_trainings(self, number: int) -> None:
        deadline = time.monotonic() + 30
        while len(self.trainings()) < number:
            assert time.monotonic() < deadline, "no training began"
            time.sleep(0.02)

    def wait_for(self, file: str) -> None:
        """Waits until a stand-in has written `file` of the ledger."""
        deadline = time.monotonic() + 30
        while not (self.ledger / file).exists():
            assert time.monotonic() < deadline, f"no {file} appeared"
            time.sleep(0.02)

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pipe in (process.stdout, process.stderr):  # which others may hold open
                pipe.close()
        for written in ("runs", ".venv"):
            shutil.rmtree(self.root / written, ignore_errors=True)

    def _lines(self, file: str) -> list:
        path = self.ledger / file
        return [shlex.split(line) for line in path.open()] if path.exists() else []


def commands_of(result: subprocess.CompletedProcess) -> list[list[str]]:
    """Returns the commands that --dry_run printed."""
    assert result.returncode == 0, result.stderr
    return [shlex.split(line, comments=True) for line in result.stdout.splitlines()]


def status_of(result: subprocess.CompletedProcess) -> int:
    """Returns the exit code; what was said shows where an assertion about it fails."""
    print(result.stdout, result.stderr)
    return result.returncode


def flag(call: list[str], name: str) -> str:
    (value,) = [word.partition("=")[2] for word in call if word.startswith(f"{name}=")]
    return value
