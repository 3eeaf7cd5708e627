"""What is left behind when a loader ends, however it ends; processes that fork or start loaders of their own."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.errors import UserError
from pipeline.batch import Batch
from pipeline.loader import Loader, PlannedLoader
from pipeline.loaders.resident import ResidentLoader, free_bytes
from tests.pipeline.stores import textured_record, write_store
from tests.pipeline.streams import EZ, clips_of, data_config, stream, take, train_loader

ROOT = Path(__file__).parents[2]
EACH = pytest.mark.parametrize("loader", ["dali", "reference", "resident"])


def traces() -> tuple[int, set[str], int]:
    """Threads of this process, what its file descriptors point to, and its maps of shared memory; a joined thread may
    take a moment to vanish.
    """
    time.sleep(0.05)
    files = {str(link.resolve()) for link in Path("/proc/self/fd").iterdir()}
    threads = len(list(Path("/proc/self/task").iterdir()))
    return threads, files, Path("/proc/self/maps").read_text().count("/dev/shm")


def settled(before: tuple[int, set[str], int]) -> bool:
    """Whether nothing is left beyond `before`."""
    for _ in range(100):
        threads, files, shared = traces()
        if threads <= before[0] and files <= before[1] and shared <= before[2]:
            return True
    return False


@EACH
def test_nothing_stays_behind(textured_store: Path, tmp_path: Path, loader: str, monkeypatch: pytest.MonkeyPatch):
    config = data_config(textured_store, loader)
    stream(config, epochs=1)  # what libraries keep for good is there after this
    before = traces()

    source = train_loader(config)
    batches = iter(source)
    next(batches)
    source.close()
    assert settled(before), "closed in mid epoch"

    records = [textured_record(number, [EZ]) for number in range(12)]
    records[11].frames[0].jpeg = b"no picture" * 20
    damaged = train_loader(data_config(write_store(tmp_path / "store", records, [EZ]), loader, batch_size=2))
    with pytest.raises(UserError, match="clip_011") as caught:
        take(damaged)
    assert settled(before), "an error on the loader's own thread, whose traceback is kept"
    assert caught.tb is not None

    source = train_loader(config)
    batches = iter(source)
    next(batches)

    def interrupted(self: PlannedLoader, count: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PlannedLoader, "_submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(batches)
    assert settled(before), "interrupted while a batch is asked for"


INTERRUPTED = """
import sys, time
from pathlib import Path
from tests.pipeline.streams import data_config, train_loader
loader = train_loader(data_config(Path(sys.argv[1]), sys.argv[2], batch_size=2))
epoch = 0
while True:
    loader.set_epoch(epoch)
    for batch in loader:
        print("batch", flush=True)
    epoch += 1
"""


@pytest.mark.slow
@EACH
def test_control_c_ends_a_process_with_a_loader(textured_store: Path, loader: str):
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(textured_store), loader],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"batch\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode in (1, 130, -signal.SIGINT) and said.rstrip().endswith(b"KeyboardInterrupt")
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # no process of its group is left


FORKED = """
import os, sys
from pathlib import Path
from tests.pipeline.streams import clips_of, data_config, stream, take, train_loader
config = data_config(Path(sys.argv[1]), sys.argv[2], batch_size=12)
source = train_loader(config)
before = clips_of(take(source, 1))
child = os.fork()
if child == 0:
    try:
        iter(source)
    except RuntimeError as error:
        assert "forked off" in str(error)
    else:
        os._exit(3)
    found = clips_of(stream(config, epochs=1))
    source.close()
    os._exit(0 if found[:12] == before else 4)
assert os.waitpid(child, 0)[1] == 0
assert len(take(source)) == 3 and source.state_dict()["samples"] == 48
source.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("loader", ["reference", "dali"])
def test_a_forked_process_makes_loaders_of_its_own(textured_store: Path, loader: str):
    # In a process of its own, because this one has threads, and Python warns of a fork then.
    command = [sys.executable, "-c", FORKED, str(textured_store), loader]
    subprocess.run(command, check=True, timeout=120, cwd=ROOT)


def first_clips(store: Path, loader: str, queue) -> None:
    queue.put(clips_of(stream(data_config(store, loader), epochs=1)))


@pytest.mark.slow
@EACH
def test_a_spawned_process_gives_the_same_batches(textured_store: Path, loader: str):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=first_clips, args=(textured_store, loader, queue))
    process.start()
    found = queue.get(timeout=100)
    process.join()
    queue.close()
    assert process.exitcode == 0
    assert found == clips_of(stream(data_config(textured_store, loader), epochs=1))


def test_loaders_of_several_kinds_share_one_place(textured_store: Path):
    """A place that one kind, batch size and number of ranks left is where another goes on."""
    kinds = ("dali", "reference", "resident")

    def ids(batches: list[Batch]) -> list[str]:
        return [clip_id for batch in batches for clip_id in batch.clip_id]

    wanted = ids(stream(data_config(textured_store, "reference"), epochs=1))
    state, found = {"epoch": 0, "samples": 0}, []
    for kind, batch_size, steps in zip(kinds * 2, (4, 6, 3, 8, 2, 5), (2, 1, 3, 1, 2, 1)):
        source: Loader = train_loader(data_config(textured_store, kind), batch_size=batch_size)
        source.load_state_dict(state)
        found += ids(take(source, steps))
        state = source.state_dict()
        source.close()
    assert found == wanted[: len(found)] and state == {"epoch": 0, "samples": len(found)}


def test_a_set_that_does_not_fit_is_refused_before_it_is_loaded(textured_store: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipeline.loaders.resident.free_bytes", lambda device: 1_000_000)
    said = r"the decoded set takes 0\.0 GB \(pictures .*sounds .*share=0\.8.*loader.name=dali"
    with pytest.raises(UserError, match=said):
        train_loader(data_config(textured_store, "resident"))
    monkeypatch.undo()
    assert free_bytes(torch.device("cpu")) > 1e6
    source = train_loader(data_config(textured_store, "resident", augment={}))
    assert isinstance(source, ResidentLoader)
    sizes = [(120, 90), (96, 96), (70, 128), (144, 81)]
    assert source.nbytes["pictures"] == 12 * 3 * int(np.prod(sizes, 1).sum())
    assert source.nbytes["sounds"] == 48 * EZ.window_frames(2.0) * 257 * 2, "windows alone, where no crop is drawn"
    whole = train_loader(data_config(textured_store, "resident"))
    assert isinstance(whole, ResidentLoader)
    assert whole.nbytes["sounds"] == 48 * EZ.window_frames(2.5) * 257 * 2
    source.close()
    whole.close()


def test_dali_loads_the_set_as_opencv_does(textured_store: Path):
    found = [
        clips_of(stream(data_config(textured_store, {"name": "resident", "decoder": decoder}), epochs=1))
        for decoder in ("opencv", "dali")
    ]
    assert found[0] == found[1]
