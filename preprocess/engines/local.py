"""Shard tasks on the processes of this machine."""

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

import cv2
from pydantic import Field

from configs.errors import UserError
from configs.schema import ComponentConfig
from preprocess.writer import Report, ShardTask, write_shard

_STOP_S = 5.0
_DEATHS_BETWEEN_CLIPS = 8


class Local:
    """`workers` processes, each with one shard at a time. A process that dies takes no more with it than its shard."""

    class Config(ComponentConfig):
        workers: int = Field(
            default_factory=lambda: len(os.sched_getaffinity(0)),
            ge=0,
            le=1024,
            description="packing processes; 0: this process itself, which a crash of a decoder then ends",
        )

    def __init__(self, config: Config) -> None:
        self.config = config

    def run(
        self, tasks: Sequence[ShardTask], report: Report, crashed: Callable[[ShardTask, str, str], ShardTask]
    ) -> None:
        """Run all tasks, as `preprocess.writer.Engine` says. No process is left behind, however this ends."""
        if self.config.workers == 0:
            for task in tasks:
                write_shard(task, report)
            return
        queue = deque(tasks)
        workers: dict[Connection, _Worker] = {}
        deaths_between_clips = 0
        try:
            while queue or workers:
                while queue and len(workers) < min(self.config.workers, len(tasks)):
                    worker = _start()
                    workers[worker.connection] = worker
                for connection in wait(list(workers)):
                    assert isinstance(connection, Connection)
                    worker = workers[connection]
                    try:
                        kind, what = connection.recv()
                    except (EOFError, ConnectionError):
                        del workers[connection]
                        detail = worker.ended()
                        if worker.task is not None and worker.clip_id is not None:
                            queue.appendleft(crashed(worker.task, worker.clip_id, detail))
                            continue
                        deaths_between_clips += 1
                        if deaths_between_clips > _DEATHS_BETWEEN_CLIPS:
                            raise RuntimeError(f"packing processes keep dying between clips ({detail})") from None
                        if worker.task is not None:
                            queue.appendleft(worker.task)
                        continue
                    if kind == "wrong":
                        raise UserError(what)
                    if kind == "failed":
                        raise RuntimeError(f"a packing process failed:\n{what}")
                    worker.clip_id = what if kind == "clip" else None
                    if kind != "ready":
                        report(kind, what)
                    if kind in ("ready", "shard"):
                        worker.give(queue.popleft() if queue else None)
        finally:
            for worker in workers.values():
                worker.process.terminate()
            for worker in workers.values():
                worker.ended()


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    task: ShardTask | None = None
    clip_id: str | None = None

    def give(self, task: ShardTask | None) -> None:
        """The next task, or None to leave. That the process is gone is found when its connection is read."""
        self.task = task
        with contextlib.suppress(ConnectionError):
            self.connection.send(task)

    def ended(self) -> str:
        """How the process ended; one that does not is killed."""
        self.process.join(_STOP_S)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        self.connection.close()
        code = self.process.exitcode or 0
        return (
            f"the process ended by {signal.Signals(-code).name}" if code < 0 else f"the process ended with code {code}"
        )


def _start() -> _Worker:
    # Spawned, not forked: decoders and torch keep threads that a fork would copy in any state.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    # Ctrl-C reaches every process of the terminal: the child is born deaf to it, and the parent stops it.
    deafen = threading.current_thread() is threading.main_thread()
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN) if deafen else None
    try:
        process.start()
    finally:
        if deafen:
            signal.signal(signal.SIGINT, heard)
    theirs.close()
    return _Worker(process, ours)


def _serve(connection: Connection) -> None:
    """The life of a packing process: tasks in, reports out, until there are no more or the other side is gone."""
    cv2.setNumThreads(1)
    understood = False
    try:
        # The task is sent on request: sending it to a process that still imports would hold up the start of the next.
        connection.send(("ready", ""))
        while (task := connection.recv()) is not None:
            write_shard(task, lambda kind, what: connection.send((kind, what)))
        understood = True
    except (EOFError, ConnectionError):
        understood = True  # nobody is there to be told
    except UserError as error:
        understood = True
        connection.send(("wrong", str(error)))
    finally:
        if not understood:
            connection.send(("failed", traceback.format_exc()))
