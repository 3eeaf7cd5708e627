"""The engines with real processes that are really killed, on this machine and on a Ray cluster of two nodes."""

import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.load import load_frontend
from preprocess.engines.local import Local
from preprocess.engines.ray import Ray, _unseen
from preprocess.layouts.manifest import Manifest
from preprocess.nursery import Nursery
from preprocess.options import PackConfig
from preprocess.process import Desk, PackingProcess, Seat
from preprocess.task import KILLED, PLAN, ShardTask
from preprocess.verify import verify
from preprocess.writer import Packed, pack
from tests.preprocess.kills import content, finished, make_source, packing_processes

CONFIG = PackConfig(frontends=(load_frontend("logmel64"),))
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("engines") / "source")


def run(source: Path, store: Path, engine, **options) -> Packed:
    layout = Manifest(Manifest.Config(name="manifest"), source)
    return pack(layout, store, CONFIG, engine, dataset="made", shard_clips=6, **options)


def run_share(source: Path, store: Path, share: tuple[int, int]) -> Packed:
    return run(source, store, local(0), share=share)


def local(workers: int) -> Local:
    return Local(Local.Config(name="local", workers=workers))


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the store that one process makes."""
    store = tmp_path_factory.mktemp("whole") / "store"
    run(source, store, local(0))
    return content(store)


@dataclass(frozen=True)
class Trial:
    """A task that does nothing but what a test wants."""

    name: str
    deed: str = ""

    def write(self, report) -> None:
        report("clip", f"{self.name}-clip")
        if self.deed == "raise":
            raise KeyError("an exception that nobody thought of")
        if self.deed == "exhaust":
            bytearray(2**62)
        if self.deed == "sleep":
            time.sleep(60)
        if self.deed == "leave":
            os._exit(3)
        report("packed", f"{self.name}-clip")
        report("shard", self.name)


@pytest.mark.slow
def test_more_processes_than_tasks_in_a_row_all_leave_in_peace():
    seen = []
    local(5).run([Trial(str(number)) for number in range(7)], lambda *said: seen.append(said), pytest.fail)
    assert sorted(what for kind, what in seen if kind == "shard") == sorted(str(number) for number in range(7))
    assert not packing_processes(os.getpid())


@pytest.mark.slow
def test_an_exception_in_a_process_ends_the_packing_with_its_traceback():
    with pytest.raises(RuntimeError, match=r"on clip a-clip(.|\n)*in write(.|\n)*KeyError: 'an exception that nobody"):
        local(1).run([Trial("a", "raise"), Trial("b")], lambda *said: None, pytest.fail)
    assert not packing_processes(os.getpid())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("deed", "detail"),
    [("leave", "the process ended with code 3"), ("exhaust", KILLED)],
)
def test_what_ends_a_process_on_a_clip_is_told_with_the_clip(deed: str, detail: str):
    told = []

    def crashed(task: Trial, clip_id: str, how: str) -> Trial:
        told.append((task.name, clip_id, how))
        return Trial(task.name)

    local(1).run([Trial("a", deed), Trial("b")], lambda *said: None, crashed)
    assert told == [("a", "a-clip", detail)]


@pytest.mark.slow
def test_a_clip_that_takes_too_long_ends_the_process():
    with Nursery() as nursery:
        process = PackingProcess(nursery, clip_limit_s=1)
        assert process.read() == ("ready", "")
        process.give(Trial("a", "sleep"))
        assert process.read() == ("clip", "a-clip") and process.read() is None
        assert process.ended() == "it took more than 1 s"


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.slow
def test_processes_share_what_is_imported_and_outlive_what_forked_them():
    with Nursery() as nursery:
        first, second = PackingProcess(nursery), PackingProcess(nursery)
        assert first.read() == second.read() == ("ready", "") and parent(first.pid) == parent(second.pid) != os.getpid()
        rollup = Path(f"/proc/{first.pid}/smaps_rollup").read_text()
        kb = {key: int(text.split()[0]) for key, text in re.findall(r"(\w+): +(\d+ kB)", rollup)}
        assert kb["Private_Dirty"] < kb["Rss"] / 2, "a fork that has done nothing yet has next to nothing of its own"
        os.kill(parent(first.pid), signal.SIGKILL)
        second.give(Trial("a", "leave"))
        assert second.read() == ("clip", "a-clip") and second.read() is None
        assert second.ended() == "the process is gone"
        third = PackingProcess(nursery)
        assert third.read() == ("ready", "")
        first.give(None)
        assert first.read() is None and first.ended() == "the process is gone"
        third.stop()
        assert third.read() is None and third.ended() == "the process ended by SIGTERM"


@pytest.mark.slow
def test_ends_and_signals_that_fill_the_wire_both_ways_are_told(monkeypatch: pytest.MonkeyPatch):
    real = socket.socketpair

    def narrow(*kind: int) -> tuple[socket.socket, socket.socket]:
        ends = real(*kind)
        for end in ends:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least that there is: a few messages
        return ends

    def stuck(*of: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stuck)
    try:
        with Nursery() as nursery:
            monkeypatch.setattr(socket, "socketpair", narrow)
            processes = [PackingProcess(nursery)]
            monkeypatch.setattr(socket, "socketpair", real)
            processes += [PackingProcess(nursery) for _ in range(29)]
            for process in processes:
                assert process.read() == ("ready", "")
                os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.5)
            signal.alarm(30)
            for process in processes:
                process.stop()
            assert {process.ended() for process in processes} == {KILLED}
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_the_desk_hands_a_task_out_again_and_gives_up_in_the_end():
    desk = Desk([Trial("a"), Trial("b")], lambda *said: None, lambda task, clip_id, how: Trial("again"))
    seat = Seat()
    assert desk.take(seat) == Trial("a")
    desk.lost(seat, KILLED)
    assert desk.take(seat) == Trial("a"), "a process that ends between clips blames none"
    desk.hear(seat, "clip", "x")
    desk.lost(seat, KILLED)
    assert desk.take(seat) == Trial("again") and not desk.done
    with pytest.raises(UserError, match=r"ended 21 times without packing a clip .*SIGKILL.*fewer --workers"):
        for _ in range(30):
            desk.lost(seat, KILLED)
            desk.take(seat)
    with pytest.raises(UserError, match="the disk is full"):
        desk.hear(seat, "wrong", "the disk is full")
    desk.hear(seat, "ready", "")
    desk.hear(seat, "failed", "Traceback ...\nImportError: no torch")
    with pytest.raises(RuntimeError, match="no torch"):
        desk.lost(seat, "the process ended with code 1")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_processes_do_not_change_a_byte(source: Path, tmp_path: Path, whole: dict[str, bytes], workers: int):
    run(source, tmp_path / "store", local(workers))
    assert content(tmp_path / "store") == whole


@pytest.mark.slow
def test_shares_in_any_order_make_the_same_store(source: Path, tmp_path: Path, whole: dict[str, bytes]):
    store = tmp_path / "store"
    first = run(source, store, local(0), share=(3, 3))
    assert first.new and first.shards_left == 10 and first.packed + len(first.refused) == first.expected == 30
    again = run(source, store, local(0), share=(3, 3))
    assert (again.packed, again.shards_left) == (first.packed, 10)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        others = list(pool.map(run_share, [source] * 2, [store] * 2, [(1, 3), (2, 3)]))
    assert sorted(packed.shards_left for packed in others)[0] == 0
    assert content(store) == whole
    assert not run(source, store, local(0), share=(1, 3)).new


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"needs the package ray.*install the extra 'ray'"):
        Ray(Ray.Config(name="ray"))


def test_a_machine_that_does_not_share_the_files_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("preprocess.engines.ray._SEEN_WITHIN_S", 0.3)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").touch()
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / PLAN).write_bytes(b"{}\n")
    seen = {"number": 0, "store": tmp_path / "store", "root": tmp_path / "in", "config": CONFIG, "clips": ()}
    task = ShardTask(**seen, plan="ca3d163bab055381", landmarks=("gone.mp4", "a.mp4"))
    assert _unseen(task) is None
    other_plan = _unseen(ShardTask(**seen, plan="0" * 16)) or ""
    assert f"does not see {tmp_path / 'store'} as this one does" in other_plan
    assert f"does not see {tmp_path / 'in'} as" in (_unseen(ShardTask(**seen, plan=task.plan, landmarks=("b",))) or "")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch):
    """A Ray cluster of two nodes of this machine, with one packing process each."""
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    made.wait_for_nodes()
    yield made
    made.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("victim", ["nothing", "packing process", "node"])
def test_a_ray_cluster_makes_the_same_store(
    source: Path, tmp_path: Path, whole: dict[str, bytes], cluster, victim: str
):
    store = tmp_path / "store"
    kept: dict[str, int] = {}

    def kill() -> None:
        while len(finished(store)) < 3:
            time.sleep(0.02)
        kept.update(finished(store))
        if victim == "node":
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        else:
            os.kill(packing_processes(os.getpid())[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    if victim != "nothing":
        killer.start()
    run(source, store, Ray(Ray.Config(name="ray", workers=2, address=cluster.address)))
    if victim != "nothing":
        killer.join()
        assert kept and all(finished(store)[name] == file for name, file in kept.items())
    assert content(store) == whole and verify(store) == []


def test_no_such_cluster():
    pytest.importorskip("ray")
    with pytest.raises(UserError, match=r"cannot use the Ray cluster at 127\.0\.0\.1:1"):
        Ray(Ray.Config(name="ray", address="127.0.0.1:1")).run([Trial("a")], lambda *said: None, pytest.fail)


def test_planning_loads_no_torch(source: Path):
    code = (
        "import sys; from preprocess.__main__ import main; import contextlib\n"
        "with contextlib.suppress(SystemExit): main(['pack', '--help'])\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert json.loads(done.stderr.strip().lower()) is False
