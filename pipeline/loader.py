"""The contract of loaders, what all of them share (epochs, places, resuming, batches made ahead), and `build_loader`,
which picks one by name.
"""

import os
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from configs.errors import UserError
from configs.resolve import resolve
from configs.schema import ComponentConfig, DataConfig
from pipeline.batch import Batch, InputSpec
from pipeline.sampler import Plan
from pipeline.source import LoaderRequest


@dataclass(frozen=True, kw_only=True)
class LoaderStats:
    """What was seen since the last call: batches and clips handed out, seconds that their receiver waited for them, how
    many finished batches stood ready at a request on average, and bytes read from the store for each clip.
    """

    batches: int
    clips: int
    wait_s: float
    ready: float
    bytes_per_clip: float


class Loader(Protocol):
    """Batches of one split. After an exception or `close` nothing of it stays behind."""

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the current epoch, from the place that `load_state_dict` or the last batch left."""
        ...

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """`{"epoch": e, "samples": n}`: n samples of epoch e, over all ranks, were handed out."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from such a place; another batch size, rank count or loader kind is fine."""
        ...

    def describe(self) -> dict[str, Any]:
        """What it reads and decodes with, in a few words each; for logs."""
        ...

    def stats(self) -> LoaderStats:
        """What happened since the last call."""
        ...

    def close(self) -> None: ...


def build_loader(
    data: DataConfig,
    spec: InputSpec,
    split: str,
    *,
    train: bool,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    size_px: int | None = None,
    batch_size: int | None = None,
) -> Loader:
    """The loader that `data.loader` names, over one split of `data.store`.

    train: shuffled, augmented, incomplete last batch dropped. Otherwise in the order of ids, nothing drawn, middle
    window, truth attached, last batch filled up and marked in `Batch.valid`.
    Raises: UserError if the store lacks what `spec` asks for; the message names the command that adds it.
    """
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    request = LoaderRequest(
        data=data,
        spec=spec,
        split=split,
        train=train,
        seed=seed,
        rank=rank,
        world_size=world_size,
        device=device,
        size_px=size_px or data.image.size_px,
        batch_size=batch_size or data.batch_size,
    )
    return resolve("pipeline.loaders", data.loader.name)(data.loader, request)


class PlannedLoader(ABC):
    """Epochs, places and resuming for a loader that gives the batches of consecutive steps.

    One thread makes batches, `ahead` of the one that is used, so that their receiver only fetches them. What is made
    ahead does not count: `state_dict` counts a batch when it is handed out.
    """

    Config: ClassVar[type[ComponentConfig]]

    def __init__(self, plan: Plan, ahead: int) -> None:
        self.plan = plan
        self._ahead = ahead
        self._maker = ThreadPoolExecutor(1, "whence-loader")
        self._making: deque[Future[tuple[Batch, int]]] = deque()
        self.bytes_read = 0
        self._epoch = 0
        self._samples = 0
        self._turn = 0  # raised whenever the place is moved, so that an iterator of before can tell
        self._broken = False
        self._closed = False
        self._process = os.getpid()
        self._reset_stats()

    @abstractmethod
    def _begin(self, epoch: int, first: int, steps: int) -> None:
        """Drop whatever is under way; the next batches are those of `steps` steps from position `first`."""

    @abstractmethod
    def _next(self) -> Batch:
        """The batch of the next step, made on the loader's thread; called `steps` times at most after a `_begin`. Adds
        what was read for it to `bytes_read`.
        """

    @abstractmethod
    def _release(self) -> None:
        """Give back threads, memory and the store. Called once, when no `_next` runs."""

    @abstractmethod
    def describe(self) -> dict[str, Any]: ...

    def __len__(self) -> int:
        return self.plan.steps()

    def __iter__(self) -> Iterator[Batch]:
        assert not self._closed, "the loader is closed"
        if self._process != os.getpid():
            raise RuntimeError("the loader was made before this process was forked off, and its threads stayed behind")
        self._turn += 1
        return self._batches(self._turn)

    def _batches(self, turn: int) -> Iterator[Batch]:
        steps = self.plan.steps(self._samples)
        for step in range(steps):
            if turn != self._turn:
                raise RuntimeError("the loader was moved or iterated anew; this iterator is out of date")
            asked_s = time.perf_counter()
            try:
                if step == 0:
                    self._forget()
                    self._begin(self._epoch, self._samples, steps)
                self._submit(min(self._ahead + 1, steps - step))
                self._ready += sum(making.done() for making in self._making)
                batch, size = self._making.popleft().result()
            except BaseException:
                self.close()
                raise
            self._waited_s += time.perf_counter() - asked_s
            self._handed_out += 1
            self._bytes += size
            self._samples = min(self._samples + self.plan.global_batch, self.plan.count)
            yield batch

    def _submit(self, count: int) -> None:
        """See that so many batches are being made or ready."""
        while len(self._making) < count:
            self._making.append(self._maker.submit(self._make))

    def _make(self) -> tuple[Batch, int]:
        """A batch and how many bytes were read for it."""
        if self._broken:
            raise RuntimeError("an earlier batch of this loader failed")
        before = self.bytes_read
        try:
            return self._next(), self.bytes_read - before
        except BaseException:
            self._broken = True
            raise

    def _forget(self) -> None:
        """Give up what is being made ahead, and wait for the batch in work: it reads the store in place."""
        for making in self._making:
            making.cancel()
        wait(self._making)
        self._making.clear()

    def set_epoch(self, epoch: int) -> None:
        self._move(epoch, 0)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "samples": self._samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises: UserError if the place is not in this split."""
        epoch, samples = state["epoch"], state["samples"]
        if epoch < 0 or not 0 <= samples <= self.plan.count:
            raise UserError(
                f"the saved place (epoch {epoch}, {samples} clips) is not in this split of {self.plan.count} clips; it "
                "is of another store or split"
            )
        self._move(epoch, samples)

    def _move(self, epoch: int, samples: int) -> None:
        self._turn += 1
        self._epoch, self._samples = epoch, samples

    def stats(self) -> LoaderStats:
        found = LoaderStats(
            batches=self._handed_out,
            clips=self._handed_out * self.plan.batch_size,
            wait_s=self._waited_s,
            ready=self._ready / max(1, self._handed_out),
            bytes_per_clip=self._bytes / max(1, self._handed_out * self.plan.batch_size),
        )
        self._reset_stats()
        return found

    def _reset_stats(self) -> None:
        self._bytes = self._handed_out = self._ready = 0
        self._waited_s = 0.0

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._turn += 1
            if self._process != os.getpid():
                return  # what there is to give back is the parent's, and what runs there is never done here
            self._forget()
            self._maker.shutdown()
            self._release()
