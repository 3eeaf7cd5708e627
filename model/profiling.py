"""Where the time of a training step goes: a trace for a viewer, and a table of stages."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, record_function

WARM_UP_STEPS = 5
STEPS = 5


class StepProfile:
    """Watches `STEPS` steps after `WARM_UP_STEPS` others. At the end of every stage of a watched step it waits for the
    device, so that the stages add up; an ordinary step, whose stages overlap, is faster.
    """

    def __init__(self, device: torch.device, out: Path, *, wanted: bool) -> None:
        """out: the trace, in Chrome's format (chrome://tracing, ui.perfetto.dev). wanted: False: watch nothing."""
        self._device, self.out, self.wanted = device, out, wanted
        self._seen = 0
        self._seconds: dict[str, float] = defaultdict(float)
        self._step_began = self._whole = 0.0
        self._profile: profile | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What happens inside belongs to a stage of the step."""
        if self._profile is None:
            yield
            return
        begin = time.perf_counter()
        self._step_began = self._step_began or begin
        with record_function(name):
            yield
            self._wait()
        self._seconds[name] += time.perf_counter() - begin

    def step_done(self) -> Table | None:
        """Call after every step. Returns the table of stages once the last watched step is done, else None.

        wanted: whether the table is still to come.
        """
        if not self.wanted:
            return None
        self._seen += 1
        if self._seen == WARM_UP_STEPS:
            kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self._device.type == "cuda")
            self._wait()
            self._profile = profile(activities=kinds, acc_events=True)  # else it warns
            self._profile.start()
        elif self._profile is not None:
            self._whole += time.perf_counter() - self._step_began
            self._step_began = 0.0
            if self._seen == WARM_UP_STEPS + STEPS:
                self._profile.stop()
                self._profile.export_chrome_trace(str(self.out))
                self._profile, self.wanted = None, False
                return self._table()
        return None

    def end(self, say: Callable[[str], object]) -> None:
        """Call when the run ends: stops watching, and tells why the table did not come, if it was wanted."""
        if not self.wanted:
            return
        if self._profile is not None:
            self._profile.stop()
        self._profile, self.wanted = None, False
        say(f"no profile: it takes {WARM_UP_STEPS + STEPS} steps, and the run ended after {self._seen}")

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _table(self) -> Table:
        whole = self._whole
        table = Table(caption=f"{STEPS} steps on {self._device}, waiting after every stage", title=str(self.out))
        for title in ("stage", "ms a step", "share"):
            table.add_column(title, justify="left" if title == "stage" else "right")
        rest = whole - sum(self._seconds.values())
        for name, seconds in [*self._seconds.items(), ("the rest", rest), ("all", whole)]:
            table.add_row(name, f"{1000 * seconds / STEPS:.2f}", f"{seconds / whole:.1%}")
        return table
