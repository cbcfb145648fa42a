"""Which start of a job this is, and whether another one was before."""

import os
import socket

from inference.parallel.restarts import Job

TORCHRUN = {"TORCHELASTIC_RUN_ID": "mine", "TORCHELASTIC_RESTART_COUNT": "2"}


def test_jobs_are_named_by_the_batch_system_or_the_launcher() -> None:
    assert Job.of({}) is None
    assert Job.of({"RANK": "0", "WORLD_SIZE": "2"}) is None
    assert str(Job.of(TORCHRUN)) == "torchrun mine#0.2"
    requeued = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}
    assert str(Job.of(requeued)) == "slurm 7#1.0"
    assert str(Job.of({**TORCHRUN, **requeued})) == "slurm 7#1.2"
    unnamed = {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "0"}
    assert str(Job.of(unnamed)) == f"torchrun of {socket.gethostname()} {os.getppid()}#0.0"


def test_a_later_start_follows_an_earlier_one_of_the_same_job() -> None:
    job = Job("slurm 7", (1, 0))
    assert job.follows("slurm 7#0.0") and job.follows("slurm 7#0.9")
    for other in ("slurm 7#1.0", "slurm 7#1.1", "slurm 8#0.0", "", "slurm 7"):
        assert not job.follows(other), other
