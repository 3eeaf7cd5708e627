"""One process that has imported what packing needs, and forks packing processes from it.

torch alone takes half a gigabyte and some seconds to import. A fork shares that memory and is there at once; and the
process that it is forked from has done nothing but import, so that no thread or decoder is copied in the middle of
something.
"""

import contextlib
import gc
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path

from configs.errors import UserError

_STOP_S = 5.0
_MESSAGE_BYTES = 4096


class Nursery:
    """The side that asks for processes. It starts the process that forks them when one is wanted first.

    Where that process is killed another one takes its place; how its children end is then not known.
    """

    def __init__(self) -> None:
        self._mother: subprocess.Popen[bytes] | None = None
        self._wire: socket.socket | None = None
        self._alive: set[int] = set()
        self._orphans: set[int] = set()
        self._ended: dict[int, int] = {}

    def fork(self, descriptor: int, clip_limit_s: int) -> int:
        """The pid of a new process that serves at the other end of this descriptor, which may then be closed here.

        Raises: UserError if the system has no more processes or memory to give.
        """
        for attempt in range(2):
            wire = self._wire or self._start()
            try:
                socket.send_fds(wire, [f"fork {clip_limit_s}".encode()], [descriptor])
                while (said := self._hear()) is None:
                    pass
            except ConnectionError as error:
                self.close()
                if attempt:
                    raise UserError("cannot start packing processes: what forks them is gone each time") from error
                continue
            kind, _, text = said.partition(" ")
            if kind == "failed":
                raise UserError(f"cannot start a packing process: {text}; use fewer --workers")
            self._alive.add(int(text))
            return int(text)
        raise AssertionError

    def signal(self, pid: int, number: int) -> None:
        """Send a signal to a process of ours, if it still runs."""
        if pid in self._orphans:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        elif self._wire is not None:
            with contextlib.suppress(ConnectionError):
                # Hear what is said meanwhile: where neither side did, hundreds of ends would fill the wire both ways.
                while self._ready(select.POLLIN | select.POLLOUT) & select.POLLIN:
                    self._hear()
                self._wire.send(f"signal {pid} {number}".encode())

    def code(self, pid: int, within_s: float) -> int | None:
        """How a process ended, as `subprocess` has it, or None if it did not end so soon, or nobody knows how."""
        while pid in self._alive and pid not in self._ended and self._wire is not None:
            if not self._ready(select.POLLIN, within_s):
                return None
            try:
                self._hear()
            except ConnectionError:
                self.close()
        self._alive.discard(pid)
        return self._ended.pop(pid, None)

    def close(self) -> None:
        """Let the forking process go; its children leave when their own connections do."""
        if self._wire is not None:
            with contextlib.suppress(ConnectionError):  # of whoever has ended, note is taken first
                while self._ready(select.POLLIN, 0):
                    self._hear()
            self._wire.close()
        if self._mother is not None:
            try:
                self._mother.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._mother.kill()
                self._mother.wait()
        self._wire = self._mother = None
        self._orphans |= self._alive - set(self._ended)
        self._alive.clear()

    def __enter__(self) -> "Nursery":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        code = "import sys; from preprocess.nursery import tend; tend(int(sys.argv[1]))"
        path = os.pathsep.join(each or str(Path.cwd()) for each in sys.path)
        # One thread: the processes are the parallelism, and numpy's own threads would be there when it forks.
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        # In a process group of its own: Ctrl-C reaches every process of the terminal's, and this one is stopped by us.
        with theirs:
            self._mother = subprocess.Popen(
                [sys.executable, "-c", code, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **single, "PYTHONPATH": path},
                process_group=0,
            )
        self._wire = ours
        return ours

    def _ready(self, events: int, within_s: float | None = None) -> int:
        """Which of the events the wire is ready for; 0 if for none so soon. Not `select`: it knows 1,024 files only."""
        assert self._wire is not None
        poll = select.poll()
        poll.register(self._wire, events)
        return next((found for _, found in poll.poll(None if within_s is None else 1000 * within_s)), 0)

    def _hear(self) -> str | None:
        """The next message, or None if it told of an end, of which note is taken."""
        assert self._wire is not None
        said = self._wire.recv(_MESSAGE_BYTES).decode()
        if not said:
            raise ConnectionResetError("the process that forks is gone")
        kind, _, text = said.partition(" ")
        if kind != "ended":
            return said
        pid, code = text.split()
        self._ended[int(pid)] = int(code)
        return None


def tend(descriptor: int) -> None:
    """The life of the forking process, until the other side is gone."""
    import preprocess.shard  # noqa: F401  what the children share

    gc.collect()
    gc.freeze()  # else the first collection of every child would copy what it only looks at
    wire = socket.socket(fileno=descriptor)
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    living: set[int] = set()
    poll = select.poll()
    for end in (wire.fileno(), woken):
        poll.register(end, select.POLLIN)
    with contextlib.suppress(ConnectionError):
        while True:
            ready = {end for end, _ in poll.poll()}
            if woken in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(woken, _MESSAGE_BYTES)
                while living and (ended := os.waitpid(-1, os.WNOHANG))[0]:
                    living.discard(ended[0])
                    wire.send(f"ended {ended[0]} {os.waitstatus_to_exitcode(ended[1])}".encode())
            if wire.fileno() not in ready:
                continue
            said, descriptors, _, _ = socket.recv_fds(wire, _MESSAGE_BYTES, 1)
            if not said:
                return
            kind, *numbers = said.decode().split()
            if kind == "signal":
                pid, number = map(int, numbers)
                if pid in living:
                    os.kill(pid, number)
                continue
            try:
                pid = os.fork()
            except OSError as error:
                os.close(descriptors[0])
                wire.send(f"failed {error.strerror}".encode())
                continue
            if not pid:
                wire.close()
                os.close(woken)
                os.close(wake)
                _live(descriptors[0], int(numbers[0]))
            os.close(descriptors[0])
            living.add(pid)
            wire.send(f"forked {pid}".encode())


def _live(descriptor: int, clip_limit_s: int) -> None:
    """The child's part of a fork; it does not return."""
    from preprocess.process import serve

    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setpgid(0, 0)
        serve(descriptor, clip_limit_s)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001  `serve` has told the packer, which stops with it
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
