"""Every way in which a trial ends: one line with what happened, where, and what helps."""

from __future__ import annotations

import errno
import os
import pickle

import pytest

from orchestrator.failures import REMEDY_FOR_MEMORY, ProcessLost, failure, of_the_file_system
from trainers.checkpoint import StateError
from trainers.contrastive import NonFiniteLossError, TrainingMemoryError
from trainers.data.datasets import DataError


def line(error: BaseException, where: str | None = None) -> str:
    return str(failure(error, error, where)["error"])


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("can't start new thread"),
        RuntimeError("could not create a primitive"),
        TrainingMemoryError("out of memory at step 7; lower batch_size or raise gradient_cache"),
    ],
)
def test_whatever_runs_out_of_memory_is_told_with_place_and_remedy(error: Exception) -> None:
    assert line(error, "step 12") == f"out of memory; {REMEDY_FOR_MEMORY} (at step 12)"


def test_the_place_that_an_error_notes_goes_before_the_one_last_heard_of() -> None:
    error = DataError("a.png: cannot be read")
    error.add_note("step 17")
    assert (
        line(pickle.loads(pickle.dumps(error)), "step 12") == "a.png: cannot be read (at step 17)"
    )  # as Ray does


def test_a_line_that_names_its_step_gets_no_other() -> None:
    told = "loss is not finite at step 3; lower optimizer.lr"
    assert line(NonFiniteLossError(told), "step 12") == told
    assert line(DataError("/data/stepwise/a.png: cannot be read"), "step 12").endswith("(at step 12)")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "No space left on device at /s/f; make room"),
        (errno.EROFS, "Read-only file system at /s/f; make the store writable"),
        (errno.EACCES, "Permission denied at /s/f; make the store writable"),
        (errno.ENOENT, "No such file or directory at /s/f; bring it back"),
        (errno.EIO, "Input/output error at /s/f; look at the disk or the network that it lies on"),
    ],
)
def test_what_the_file_system_refuses_is_told_with_the_remedy(number: int, remedy: str) -> None:
    error = OSError(number, os.strerror(number), "/s/f")
    assert line(error, "step 12") == f"{remedy}, and the same command goes on (at step 12)"


def test_a_state_that_could_not_be_written_keeps_its_own_sentence() -> None:
    told = "/s: the state of step 9 cannot be written (No space left on device); make room"
    assert line(StateError(told), "step 12") == told


def test_a_process_lost_for_want_of_memory_keeps_its_own_sentence() -> None:
    told = "its process was lost 4 times; out of memory is the usual reason: lower batch_size"
    assert line(ProcessLost(told), "step 12") == f"{told} (at step 12)"


def test_a_lost_loader_process_is_told_with_its_usual_reason() -> None:
    error = RuntimeError("DataLoader worker (pid(s) 1234) exited unexpectedly")
    assert line(error, "step 12") == (
        "a loader process was lost; out of memory is the usual reason: lower resources.loader_processes, or run fewer "
        "at once (--max-concurrent) (at step 12)"
    )


def test_an_error_without_words_is_told_by_its_name_and_any_takes_one_line() -> None:
    assert line(KeyError()) == "KeyError"
    assert "\n" not in line(ValueError("first\nsecond"))


def test_of_other_errors_than_those_of_a_file_system_nothing_is_told_of_it() -> None:
    assert of_the_file_system(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")) is None
    assert of_the_file_system(OSError("without a number")) is None
