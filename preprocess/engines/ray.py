"""Shard tasks on the machines of a Ray cluster."""

import hashlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field

from configs.errors import UserError
from configs.schema import ComponentConfig
from preprocess.nursery import Nursery
from preprocess.process import Desk, PackingProcess, Seat
from preprocess.task import PLAN, Crashed, Report, ShardTask

_TELL_EVERY_S = 1.0
_SEEN_WITHIN_S = 10.0
_REACHED_WITHIN_S = 10.0
_PACKAGES = ("configs", "pipeline", "preprocess")


class Ray:
    """Packing processes on all machines of a Ray cluster.

    The input and the store must lie under the same paths on all of them, on a file system that they share; each machine
    looks before it packs. Python packages must be there already, our own code is sent along. A machine that is lost
    takes no more with it than the shards that it was at.
    """

    class Config(ComponentConfig):
        workers: int | None = Field(
            default=None, ge=1, le=100_000, description="packing processes; null: one for each CPU of the cluster"
        )
        address: str | None = Field(
            default=None, description="of the cluster; null: RAY_ADDRESS, else that of this machine, else a new one"
        )

    def __init__(self, config: Config) -> None:
        """Raises: UserError if Ray is not installed."""
        self.config = config
        try:
            import ray
        except ImportError as error:
            raise UserError(f"the engine 'ray' needs the package ray ({error}); install the extra 'ray'") from error
        self._ray: Any = ray

    def run(self, tasks: Sequence[ShardTask], report: Report, crashed: Crashed) -> None:
        """Run all tasks, as `preprocess.task.Engine` says. Nothing of it is left on the cluster, however this ends."""
        ray = self._ray
        if not tasks:
            return
        with self._connected():
            attendant = ray.remote(num_cpus=1, max_restarts=0)(_Attendant)
            desk = Desk(tasks, report, crashed)
            calls: dict[Any, tuple[Any, Seat]] = {}
            while not desk.done:
                starting = sum(seat.task is None for _, seat in calls.values())
                workers = self.config.workers or int(ray.cluster_resources().get("CPU", 1))
                for _ in range(min(desk.waiting - starting, workers - len(calls))):
                    actor = attendant.remote()
                    calls[actor.tell.remote()] = (actor, Seat())
                (call, *_), _ = ray.wait(list(calls), num_returns=1)
                actor, seat = calls.pop(call)
                try:
                    told = ray.get(call)
                except ray.exceptions.RayActorError as error:
                    seat.clip_id = None  # the machine was lost, or Ray's process on it: no clip is to blame
                    desk.lost(seat, str(error).partition("\n")[0])
                    continue
                stays = True
                for kind, what in told:
                    if kind == "ended":
                        desk.lost(seat, what)
                        stays = False
                    elif desk.hear(seat, kind, what):
                        stays = desk.take(seat) is not None
                        actor.give.remote(seat.task)
                if stays:
                    calls[actor.tell.remote()] = (actor, seat)

    @contextmanager
    def _connected(self) -> Iterator[None]:
        ray = self._ray
        root = Path(__file__).parents[2]
        address = self.config.address or os.environ.get("RAY_ADDRESS")
        if address is not None:
            _check_reachable(address)
        main = threading.current_thread() is threading.main_thread()
        heard = signal.getsignal(signal.SIGTERM)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            ray.init(
                address=address,
                runtime_env={"py_modules": [str(root / name) for name in _PACKAGES]},
                log_to_driver=False,
                logging_level=logging.WARNING,
                include_dashboard=False if address is None else None,
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(f"cannot use the Ray cluster at {address or 'this machine'}: {error}") from error
        try:
            if main:
                signal.signal(signal.SIGTERM, heard)  # Ray put its own in place
            yield
        finally:
            ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raises: UserError if nobody listens at `host:port`; Ray itself would try for minutes."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if not host:
        return  # a word of Ray's, like "auto" or "local"
    try:
        socket.create_connection((host, int(port)), _REACHED_WITHIN_S).close()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot use the Ray cluster at {address}: {error}") from error


class _Attendant:
    """Starts a packing process on its machine, passes tasks to it, and tells what it says."""

    def __init__(self) -> None:
        self._process = PackingProcess(Nursery())
        self._said: list[tuple[str, str]] = []

    def give(self, task: ShardTask | None) -> None:
        """The next task, or None to leave."""
        unseen = None if task is None else _unseen(task)
        if unseen is not None:
            self._said.append(("wrong", unseen))
        else:
            self._process.give(task)

    def tell(self) -> list[tuple[str, str]]:
        """What the process said since the last call, for about a second; ("ended", how) when it is gone."""
        said, self._said = self._said, []
        until = time.monotonic() + _TELL_EVERY_S
        while not said or said[-1][0] not in ("ready", "shard", "wrong", "ended"):
            if not self._process.connection.poll(max(until - time.monotonic(), 0.0)):
                break
            told = self._process.read()
            said.append(("ended", self._process.ended()) if told is None else told)
        return said


def _unseen(task: ShardTask) -> str | None:
    """What of a task this machine does not see as the packer does, or None. A shared folder may lag some seconds."""
    until = time.monotonic() + _SEEN_WITHIN_S
    while True:
        try:
            plan = (task.store / PLAN).read_bytes()
            store_seen = hashlib.sha256(plan).hexdigest()[:16] == task.plan
        except OSError:
            store_seen = False
        input_seen = not task.landmarks or any((task.root / name).is_file() for name in task.landmarks)
        if store_seen and input_seen:
            return None
        if time.monotonic() > until:
            unseen = task.root if store_seen else task.store
            return (
                f"the machine {socket.gethostname()} of the Ray cluster does not see {unseen} as this one does. Input "
                "and store must lie under the same paths on a file system that all machines share"
            )
        time.sleep(0.2)
