"""What reading workers do when a signal reaches all processes of a job."""

import signal

GRACE_SECONDS = 60  # after SIGTERM: a training saves after the step that it is in


def outlast_signals(worker: int, workers: int) -> None:
    """Lets a worker read on after Ctrl-C and, for a while, after SIGTERM.

    They come to the whole process group, or the whole job step of Slurm. The training answers them:
    it saves, then stops its workers; without workers it would end before that. A worker that is
    still starting ends at once: no batch of its has been trained on.

    Args:
      worker: its number, as Grain tells it.
      workers: how many there are.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_SECONDS))
