"""Shard tasks on the processes of this machine."""

import os
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait

from pydantic import Field

from configs.schema import ComponentConfig
from preprocess.nursery import Nursery
from preprocess.process import Desk, PackingProcess, Seat
from preprocess.task import Crashed, Report, Task


class Local:
    """`workers` processes of this machine, each with one shard at a time."""

    class Config(ComponentConfig):
        workers: int = Field(
            default_factory=lambda: len(os.sched_getaffinity(0)),
            ge=0,
            le=1024,
            description="packing processes; 0: this process itself, which a crash of a decoder then ends",
        )

    def __init__(self, config: Config) -> None:
        self.config = config

    def run(self, tasks: Sequence[Task], report: Report, crashed: Crashed) -> None:
        """Run all tasks, as `preprocess.task.Engine` says. No process is left behind, however this ends."""
        if self.config.workers == 0:
            for task in tasks:
                task.write(report)
            return
        desk = Desk(tasks, report, crashed)
        workers: dict[Connection, tuple[PackingProcess, Seat]] = {}
        leaving: list[PackingProcess] = []
        with Nursery() as nursery:
            try:
                while not desk.done:
                    starting = sum(seat.task is None for _, seat in workers.values())
                    for _ in range(min(desk.waiting - starting, self.config.workers - len(workers))):
                        process = PackingProcess(nursery)
                        workers[process.connection] = (process, Seat())
                    for connection in wait(list(workers)):
                        assert isinstance(connection, Connection)
                        process, seat = workers[connection]
                        said = process.read()
                        if said is None:
                            del workers[connection]
                            desk.lost(seat, process.ended())
                        elif desk.hear(seat, *said):
                            process.give(desk.take(seat))
                            if seat.task is None:
                                del workers[connection]
                                leaving.append(process)
            finally:
                for process, _ in workers.values():
                    process.stop()
                for process in (*leaving, *(process for process, _ in workers.values())):
                    process.ended()
