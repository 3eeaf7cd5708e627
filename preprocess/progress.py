"""How far packing is: a bar on a terminal, a line now and then elsewhere."""

import time
from collections import Counter

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_LINE_EVERY_S = 10.0


class PackProgress:
    """Counts what is reported, as `preprocess.writer.Report` says, and shows clips/s and the time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._expected = self._done = self._before = 0
        self._refused: Counter[str] = Counter()
        self._start = self._last_line = time.monotonic()
        self._task: TaskID | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def found(self, expected: int, packed: int, refused: int) -> None:
        """What there is to do, and what an earlier run did."""
        self._expected = expected
        self._before = packed + refused
        if self._before:
            self._console.print(f"going on: {self._before} of {expected} clips are done")
        self._start = self._last_line = time.monotonic()
        self._task = self._bar.add_task("packing", total=expected, completed=self._before, rate="")

    def report(self, kind: str, what: str) -> None:
        if kind not in ("packed", "refused"):
            return
        self._done += 1
        if kind == "refused":
            self._refused[what] += 1
        now = time.monotonic()
        rate = self._done / max(now - self._start, 1e-3)
        refused = f", {self._refused.total()} refused" if self._refused else ""
        if self._task is not None:
            self._bar.update(self._task, completed=self._reached, rate=f"{rate:.1f} clips/s{refused}")
        if not self._console.is_terminal and now - self._last_line >= _LINE_EVERY_S:
            self._last_line = now
            left = max(0, self._expected - self._reached) / rate
            self._console.print(
                f"{self._reached}/{self._expected} clips, {rate:.1f} clips/s, about {left:.0f} s left{refused}"
            )

    @property
    def _reached(self) -> int:
        # A shard that is written again reports its clips again.
        return min(self._before + self._done, self._expected)

    def rate(self) -> str:
        """Clips of this run, its seconds and clips/s."""
        seconds = time.monotonic() - self._start
        return f"{self._done} clips in {seconds:.1f} s, {self._done / max(seconds, 1e-3):.1f} clips/s"

    def __enter__(self) -> "PackProgress":
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()
