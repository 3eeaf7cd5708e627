"""Packing processes: tasks in, reports out; and the desk that hands out tasks and knows what to do when one dies.

A process that dies on a clip takes no more with it than its shard: the shard is begun again, and a clip that this
happens to again and again is refused. An exception in a process is a fault of ours, not of a clip: it ends the packing.
"""

import contextlib
import os
import signal
import socket
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from configs.allocator import keep_freed_memory
from configs.errors import UserError
from preprocess.nursery import Nursery
from preprocess.task import Crashed, Report, Task

CLIP_LIMIT_S = 600
_STOP_S = 5.0
_DEATHS_IN_A_ROW = 20


class PackingProcess:
    """A process of this machine that packs one shard after another. It leaves when this side of the connection goes."""

    def __init__(self, nursery: Nursery, clip_limit_s: int = CLIP_LIMIT_S) -> None:
        """clip_limit_s: a clip that takes longer ends the process, as one that crashes a decoder does."""
        ours, theirs = socket.socketpair()
        self._nursery = nursery
        self._clip_limit_s = clip_limit_s
        self.connection = Connection(ours.detach())
        with theirs:
            self.pid = nursery.fork(theirs.fileno(), clip_limit_s)

    def give(self, task: Task | None) -> None:
        """The next task, or None to leave. That the process is gone is found when it is read."""
        with contextlib.suppress(ConnectionError):
            self.connection.send(task)

    def read(self) -> tuple[str, str] | None:
        """The next report, or None if the process is gone.

        Besides those of `Report`: ("ready", "") before the first task, ("wrong", text of a UserError), ("failed",
        traceback).
        """
        try:
            return self.connection.recv()
        except (EOFError, ConnectionError):
            return None

    def ended(self) -> str:
        """How the process ended; one that does not is killed."""
        code = self._nursery.code(self.pid, _STOP_S)
        if code is None:
            self._nursery.signal(self.pid, signal.SIGKILL)
            code = self._nursery.code(self.pid, _STOP_S)
        self.connection.close()
        if code is None:
            return "the process is gone"
        if code == -signal.SIGALRM:
            return f"it took more than {self._clip_limit_s} s"
        return (
            f"the process ended by {signal.Signals(-code).name}" if code < 0 else f"the process ended with code {code}"
        )

    def stop(self) -> None:
        """Ask the process to end, without waiting for it."""
        self._nursery.signal(self.pid, signal.SIGTERM)


def serve(descriptor: int, clip_limit_s: int) -> None:
    """The life of a packing process, until there are no more tasks or the other side is gone."""
    import cv2  # here, because only packing processes need it and its memory

    connection = Connection(descriptor)

    def report(kind: str, what: str) -> None:
        # The alarm ends the process wherever it is, in a decoder too. Writing may take as long as the disk does.
        signal.alarm(clip_limit_s if kind == "clip" else 0)
        connection.send((kind, what))

    keep_freed_memory()
    cv2.setNumThreads(1)
    understood = False
    try:
        # The task is sent on request: sending it to a process that still imports would hold up the start of the next.
        connection.send(("ready", ""))
        while (task := connection.recv()) is not None:
            task.write(report)
        understood = True
    except (EOFError, ConnectionError):
        understood = True  # nobody is there to be told
    except UserError as error:
        understood = True
        connection.send(("wrong", str(error)))
    except MemoryError:
        os.kill(os.getpid(), signal.SIGKILL)  # as the system does elsewhere when a clip takes too much memory
    finally:
        if not understood:
            connection.send(("failed", traceback.format_exc()))


@dataclass
class Seat:
    """What a packing process is at: its task, the clip of it that it said last, and the failure that ends it."""

    task: Task | None = None
    clip_id: str | None = None
    failure: str = ""


class Desk:
    """The tasks to do, and what follows from what packing processes say, wherever they run."""

    def __init__(self, tasks: Sequence[Task], report: Report, crashed: Crashed) -> None:
        self._queue = deque(tasks)
        self._left = len(tasks)
        self._report = report
        self._crashed = crashed
        self._deaths = 0

    @property
    def waiting(self) -> int:
        """Tasks that nobody is at."""
        return len(self._queue)

    @property
    def done(self) -> bool:
        """Whether all tasks are finished."""
        return not self._left

    def take(self, seat: Seat) -> Task | None:
        """The next task of a seat, or None if there is nothing to do."""
        seat.task, seat.clip_id = self._queue.popleft() if self._queue else None, None
        return seat.task

    def hear(self, seat: Seat, kind: str, what: str) -> bool:
        """Take note of a report. True if the process wants a task. Raises: UserError for ("wrong", text)."""
        if kind == "wrong":
            raise UserError(what)
        if kind == "failed":
            seat.failure = what
            return False  # the process ends by itself
        if kind != "ready":
            self._report(kind, what)
        seat.clip_id = what if kind == "clip" else None
        if kind in ("packed", "refused", "shard"):
            self._deaths = 0
        if kind == "shard":
            self._left -= 1
        return kind in ("ready", "shard")

    def lost(self, seat: Seat, detail: str) -> None:
        """Do what is to be done when the process of a seat has ended.

        detail: how. Raises: UserError if processes end again and again without packing a clip; RuntimeError with its
        traceback if an exception ended it.
        """
        if seat.failure:
            where = "" if seat.clip_id is None else f" on clip {seat.clip_id}"
            raise RuntimeError(f"a packing process failed{where}; what is packed stays\n{seat.failure}")
        self._deaths += 1
        if self._deaths > _DEATHS_IN_A_ROW:
            raise UserError(
                f"packing processes ended {self._deaths} times without packing a clip ({detail}). If this is for lack "
                "of memory, use fewer --workers. What is packed stays"
            )
        if seat.task is not None and seat.clip_id is not None:
            seat.task = self._crashed(seat.task, seat.clip_id, detail)
        if seat.task is not None:
            self._queue.appendleft(seat.task)
