"""Processes beside this one: started for one job, watched, and never left behind."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, NamedTuple

from finetune.errors import FinetuneError, ProcessError
from finetune.training.world import World

# What a process that lost its peer takes to say so.
GRACE_S = 10.0


class Failure(NamedTuple):
    """What went wrong in another process: a message for a person with its exit code, or a traceback."""

    text: str
    exit_code: int | None

    def error(self, rank: int) -> Exception:
        if self.exit_code is None:
            return RuntimeError(f"process {rank} failed:\n{self.text}")
        failed = FinetuneError(self.text)
        failed.exit_code = self.exit_code
        return failed


def failure_of(error: Exception) -> Failure:
    if isinstance(error, FinetuneError):
        return Failure(str(error), error.exit_code)
    return Failure("".join(traceback.format_exception(error)), None)


class Children:
    """The other processes of this machine, from the start of a job to its end.

    They are started afresh, so they share no handle or thread with this one. They end when it does, however it does.
    """

    def __init__(self, world: World, task: tuple[Any, ...]) -> None:
        """task: a function and its arguments after the World of the process that it is called in."""
        self.world, self.task = world, task
        self.done = threading.Event()

    def __enter__(self) -> Children:
        context = multiprocessing.get_context("spawn")
        self.ends: dict[int, Connection] = {}
        self.processes = {}
        for local_rank in range(1, self.world.local_size):
            world = self.world.beside(local_rank)
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=_live, args=(there, world, *self.task), name=f"rank {world.rank}")
            process.start()
            there.close()
            self.ends[world.rank], self.processes[world.rank] = here, process
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.done.set()
        for process in self.processes.values():
            # after a failure they may wait for this one for ever
            process.join(GRACE_S if kind is None else 0)
            process.kill()
            process.join()

    def cause_of(self, error: Exception) -> Exception:
        """Return what really went wrong: where another process failed, this one only finds that it is gone."""
        if isinstance(error, FinetuneError):
            return error
        self._wait_for_an_end(GRACE_S / 2)
        return self._first_failure() or error

    def _wait_for_an_end(self, timeout_s: float | None) -> None:
        ended = wait([process.sentinel for process in self.processes.values()], timeout_s)
        for process in self.processes.values():
            if process.sentinel in ended:
                # a dying process closes its sentinel before it has an exit code
                process.join(GRACE_S / 2)

    def _first_failure(self) -> Exception | None:
        told: list[Exception] = []
        for rank, process in self.processes.items():
            end = self.ends[rank]
            try:
                failure = end.recv() if end.poll() else None
            except EOFError:
                failure = None
            if failure is not None:
                told.append(failure.error(rank))
            elif process.exitcode:
                died = signal.Signals(-process.exitcode).name if process.exitcode < 0 else f"code {process.exitcode}"
                return ProcessError(
                    f"process {rank} of {self.world.size} ended with {died} (perhaps for want of memory); "
                    "the same command resumes"
                )
        # a message for a person is a cause; a traceback may be of one that lost its peers as we did
        return min(told, key=lambda failed: not isinstance(failed, FinetuneError), default=None)

    def _watch(self) -> None:
        """End this process too where another has died and a collective operation of the GPU waits for it for ever."""
        self._wait_for_an_end(None)
        if self.done.wait(GRACE_S):
            return
        failed = self._first_failure() or ProcessError("a process of this training ended before its time")
        print(f"finetune train: {failed}", file=sys.stderr, flush=True)  # noqa: T201
        for process in self.processes.values():
            process.kill()
        os._exit(getattr(failed, "exit_code", 1))


def _live(end: Connection, world: World, task: Callable[..., Failure | None], *arguments: Any) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    failure = task(world, *arguments)
    if failure is not None:
        end.send(failure)
        sys.exit(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
