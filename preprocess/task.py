"""What passes between the packer and the processes that pack: one shard as a task, and who runs tasks."""

import json
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.store import DATA, INDEX
from preprocess.layout import SourceClip
from preprocess.options import PackConfig

PLAN = "plan.json"
SHARD = "shard.json"
KILLED = f"the process ended by {signal.SIGKILL.name}"

Report = Callable[[str, str], None]
"""Called with what happened and to what: ("clip", clip_id) before a clip, then ("packed", clip_id) or
("refused", reason); ("shard", name) when a shard is finished."""

Crashed = Callable[[Any, str, str], "Task"]
"""Called with (task, clip_id, how the process ended) when a process died on a clip; gives the task to run instead."""


class Task(Protocol):
    """The writing of one shard; pickled on its way to the process that does it."""

    def write(self, report: Report) -> None:
        """Write the shard, then report ("shard", its name). Raises: UserError if the disk does not take it."""
        ...


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """All that a process needs to write one shard.

    landmarks: some files of the input that were there when packing began, relative to `root`. suspects: clips on which
    a process died; they are tried before anything is written. crashed: clip id -> detail of those on which processes
    died too often; they are refused.
    """

    number: int
    store: Path
    root: Path
    plan: str
    config: PackConfig
    clips: tuple[SourceClip, ...]
    landmarks: tuple[str, ...] = ()
    suspects: tuple[str, ...] = ()
    crashed: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        return f"shard-{self.number:05d}"

    def write(self, report: Report) -> None:
        """Make the clips' records and write them."""
        from preprocess.shard import write_shard  # here, because only what packs needs torch and its memory

        write_shard(self, report)

    def summary(self) -> dict[str, Any] | None:
        """What `shard.json` of the finished shard says; None while there is no finished shard of this very plan."""
        folder = self.store / self.name
        try:
            summary = json.loads((folder / SHARD).read_bytes())
            whole = (folder / DATA).stat().st_size == summary["bytes"] and (folder / INDEX).is_file()
        except (OSError, ValueError, KeyError):
            return None
        return summary if whole and summary.get("plan") == self.plan else None


class Engine(Protocol):
    """What runs shard tasks: processes of this machine, or of many."""

    def run(self, tasks: Sequence[Task], report: Report, crashed: Crashed) -> None:
        """Run all tasks. report and crashed are called in this process."""
        ...
