"""Clips into shards, shards into a store.

The folder of a store while it is packed: `plan.json` (what is being packed; written first), `shard-00003.tmp-...`
(being written), `shard-00003` (finished: renamed after it was synced and read back), `shard-00003.crashed.json` (its
clips on which packing processes died), and at the end `refused.csv` and `manifest.json`. To go on after a stop means to
redo what has no final name. A finished shard keeps its refusals: to try refused clips again, delete the store and pack
anew.

The same clips, options and library versions give the same bytes in every file of the shards, whatever the number of
processes: nothing in them tells when, where or by whom they were written. `manifest.json` names the versions.
"""

import fcntl
import hashlib
import itertools
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.load import as_mapping
from pipeline.record import RECORD_VERSION
from pipeline.store import MANIFEST, STORE_FORMAT, STORE_VERSION, id_hash
from preprocess.files import json_bytes, sync_folder, write_bytes
from preprocess.layout import Layout, SourceClip
from preprocess.manifest_file import REFUSED, contents, read_refused, write_manifest, write_refused
from preprocess.options import PackConfig
from preprocess.task import KILLED, PLAN, Engine, Report, ShardTask

_STRIKES = 2
_KILLS = 5
_LANDMARKS = 16


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What came of packing. refused: rows of REFUSED_COLUMNS. new: false if the store was there already. shards_left:
    those that other shares of the store still have to pack, while the rest is about this share.
    """

    expected: int
    packed: int
    refused: list[list[str]]
    new: bool = True
    shards_left: int = 0


class Stopped(Exception):
    """Packing was interrupted with `done` of `total` shards finished."""

    def __init__(self, done: int, total: int) -> None:
        super().__init__(f"stopped; {done} of {total} shards done; run the same command to go on")


def ordered(clips: Sequence[SourceClip]) -> list[SourceClip]:
    """The clips in an order that looks random but depends on nothing but their ids."""
    return sorted(
        clips, key=lambda clip: (hashlib.blake2b(clip.clip_id.encode(), digest_size=8).digest(), clip.clip_id)
    )


def default_shard_clips(count: int) -> int:
    """Clips a shard: 16 shards, but no fewer than 8 and no more than 4096 clips in each."""
    return min(max(math.ceil(count / 16), 8), 4096)


def make_plan(
    layout_name: str, layout_options: Any, clips: Sequence[SourceClip], config: PackConfig, shard_clips: int
) -> dict:
    """What decides the content of a store; two equal plans give the same store."""
    listing = hashlib.sha256()
    for clip in sorted(clips, key=lambda clip: clip.clip_id):
        listing.update(json.dumps(asdict(clip), sort_keys=True).encode())
    return {
        "format": STORE_FORMAT,
        "version": STORE_VERSION,
        "record_version": RECORD_VERSION,
        "layout": layout_name,
        "layout_options": layout_options,
        "options": as_mapping(config),
        "shard_clips": shard_clips,
        "clips": len(clips),
        "id_hash": id_hash(clip.clip_id for clip in clips),
        "clips_sha256": listing.hexdigest(),
    }


def pack(
    layout: Layout,
    store: Path,
    config: PackConfig,
    engine: Engine,
    *,
    dataset: str,
    shard_clips: int | None = None,
    share: tuple[int, int] | None = None,
    clips: list[SourceClip] | None = None,
    about: dict[str, Any] | None = None,
    report: Report = lambda kind, what: None,
    found: Callable[[int, int, int], None] = lambda expected, packed, refused: None,
) -> Packed:
    """Pack the clips of a layout into a store; go on where an earlier call with the same plan stopped.

    share: (i, n) packs every n-th shard from the i-th (1 to n) on, for n jobs that start in any order, on any machines;
    who finishes the last shard of all also writes the manifest. found: called once with the clips to pack in all and
    those that finished shards hold and refused already. about: more entries of the manifest.
    Raises: UserError if `store` holds anything else, or nothing could be packed; Stopped after Ctrl-C.
    """
    if clips is None:
        clips = layout.clips()
    twice = [clip_id for clip_id, count in Counter(clip.clip_id for clip in clips).items() if count > 1]
    if twice:
        raise UserError(f"{layout.source}: {len(twice)} clip ids stand for several clips, '{twice[0]}' among them")
    shard_clips = shard_clips or default_shard_clips(len(clips))
    plan = make_plan(layout.config.name, as_mapping(layout.config), clips, config, shard_clips)
    plan_hash = hashlib.sha256(json_bytes(plan)).hexdigest()[:16]
    claim = _Claim(store, plan)
    try:
        with claim:
            if (store / MANIFEST).is_file():
                return _already(store)
            tasks = _tasks(layout.root, store.absolute(), plan_hash, config, ordered(clips), shard_clips)
            ours = tasks if share is None else tasks[share[0] - 1 :: share[1]]
            claim.shards([task.number for task in ours])
            _remove_temporary(ours)
            finished = {task.number: summary for task in ours if (summary := task.summary()) is not None}
            found(
                sum(len(task.clips) for task in ours),
                sum(item["clips"] for item in finished.values()),
                sum(len(item["refused"]) for item in finished.values()),
            )
            try:
                engine.run([_marked(task) for task in ours if task.number not in finished], report, _strike)
            except KeyboardInterrupt:
                raise Stopped(sum(task.summary() is not None for task in ours), len(ours)) from None
            finally:
                _remove_temporary(ours)
            left = sum(task.summary() is None for task in tasks)
            if left:
                assert share is not None, "the engine left a shard out"
                return _share_done(ours, left)
            claim.everything()
            if (store / MANIFEST).is_file():
                return _already(store)
            return _finish(store, tasks, plan, config, dataset, about or {})
    except OSError as error:
        raise UserError(
            f"cannot pack into {store}: {error}. What is packed stays; run the same command again"
        ) from error


def _tasks(
    root: Path, store: Path, plan_hash: str, config: PackConfig, order: list[SourceClip], shard_clips: int
) -> list[ShardTask]:
    there = (file for file in dict.fromkeys(clip.file for clip in order) if (root / file).is_file())
    landmarks = tuple(itertools.islice(there, _LANDMARKS))
    return [
        ShardTask(
            number=number,
            store=store,
            root=root,
            plan=plan_hash,
            config=config,
            clips=tuple(order[cut : cut + shard_clips]),
            landmarks=landmarks,
        )
        for number, cut in enumerate(range(0, len(order), shard_clips))
    ]


def _already(store: Path) -> Packed:
    manifest = json.loads((store / MANIFEST).read_text(encoding="utf-8"))
    return Packed(expected=manifest["expected"], packed=manifest["packed"], refused=read_refused(store), new=False)


def _share_done(tasks: list[ShardTask], left: int) -> Packed:
    summaries = [summary for task in tasks if (summary := task.summary()) is not None]
    return Packed(
        expected=sum(item["expected"] for item in summaries),
        packed=sum(item["clips"] for item in summaries),
        refused=sorted(row for item in summaries for row in item["refused"]),
        shards_left=left,
    )


class _Claim:
    """The folder of a store, made if need be, with this plan in it, and shards of it closed to all other packers.

    The locks are record locks on `plan.json`: byte 0 guards the plan itself, byte n + 1 shard n. They hold between the
    machines of a cluster where the file system has locks at all, and end with this process.
    """

    def __init__(self, store: Path, plan: dict[str, Any]) -> None:
        self._store = store
        self._plan = plan
        self._held: list[int] = []

    def __enter__(self) -> "_Claim":
        """Raises: UserError if the folder holds something else, or is packed by another plan."""
        store = self._store
        try:
            store.mkdir(parents=True, exist_ok=True)
            names = {path.name for path in store.iterdir()}
            if names - {REFUSED} and not (store / PLAN).exists():
                raise UserError(
                    f"{store} holds files that are not of an unfinished store ({', '.join(sorted(names)[:3])}); "
                    "name a new or an empty folder"
                )
            self._file = (store / PLAN).open("a+b")
        except OSError as error:
            raise UserError(f"cannot make a store at {store}: {error.strerror}") from error
        try:
            self._lock(0, 1)
            self._check_plan()
            self._unlock(0, 1)
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def _check_plan(self) -> None:
        self._file.seek(0)
        old = self._file.read()
        if old and old != json_bytes(self._plan):
            raise UserError(_other_plan(self._store, old, self._plan))
        if not old:
            try:
                self._file.write(json_bytes(self._plan))
                self._file.flush()
            except OSError:
                self._file.truncate(0)  # half a plan would be taken for another plan
                raise
            os.fsync(self._file.fileno())
            sync_folder(self._store)

    def _lock(self, first: int, count: int, wait: bool = True) -> None:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), count, first)
        except (BlockingIOError, PermissionError) as error:
            raise UserError(f"another process is packing into {self._store}; wait for it, or stop it first") from error
        except OSError as error:
            raise UserError(
                f"the file system of {self._store} gives no file locks ({error.strerror}); pack to another one"
            ) from error

    def _unlock(self, first: int, count: int) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN, count, first)

    def shards(self, numbers: list[int]) -> None:
        """Close these shards to others. Raises: UserError if another process has closed one of them."""
        for number in numbers:
            self._lock(number + 1, 1, wait=False)

    def everything(self) -> None:
        """Wait until no other process is at any shard, and close all of them."""
        self._unlock(0, 0)  # first, for two processes that wait for each other with locks held would wait forever
        self._lock(0, 0)


def _other_plan(store: Path, old: bytes, plan: dict[str, Any]) -> str:
    try:
        was = json.loads(old)
    except ValueError:
        return f"{store / PLAN} is damaged; delete {store} and pack again"
    pairs = {**{key: (was.get(key), plan[key]) for key in plan if key != "options"}}
    options = was.get("options", {})
    pairs |= {key: (options.get(key), value) for key, value in plan["options"].items()}
    pairs.pop("clips_sha256")
    differing = [f"{key}: {_shown(a)} there, {_shown(b)} now" for key, (a, b) in pairs.items() if a != b]
    state = "a finished store" if (store / MANIFEST).is_file() else "an unfinished store"
    return "\n  ".join(
        [
            f"{store} is {state} of another plan; name another folder, or delete this one to pack it anew:",
            *(differing or ["what the layout says about the clips (files, times, labels or boxes) has changed"]),
        ]
    )


def _shown(value: Any) -> str:
    text = (
        json.dumps([item.get("name", item) if isinstance(item, dict) else item for item in value])
        if isinstance(value, list)
        else json.dumps(value)
    )
    return text if len(text) <= 80 else f"{text[:77]}..."


def _deaths_file(task: ShardTask) -> Path:
    return task.store / f"{task.name}.crashed.json"


def _deaths(task: ShardTask) -> dict[str, list[str]]:
    """Clip id -> how processes ended on it; kept on disk until the store is finished."""
    file = _deaths_file(task)
    return json.loads(file.read_bytes()) if file.is_file() else {}


def _strike(task: ShardTask, clip_id: str, detail: str) -> ShardTask:
    """The task to run in place of one that a process died on."""
    deaths = _deaths(task)
    deaths.setdefault(clip_id, []).append(detail)
    write_bytes(_deaths_file(task), json_bytes(deaths))
    return _marked(task)


def _marked(task: ShardTask) -> ShardTask:
    """The task with what is known of its clips. SIGKILL comes from outside, so more of them make a clip guilty."""
    deaths = _deaths(task)
    guilty = {
        clip_id for clip_id, ends in deaths.items() if len(ends) >= (_KILLS if set(ends) == {KILLED} else _STRIKES)
    }
    return replace(
        task,
        suspects=tuple(clip_id for clip_id in deaths if clip_id not in guilty),
        crashed=tuple((clip_id, deaths[clip_id][-1]) for clip_id in deaths if clip_id in guilty),
    )


def _remove_temporary(tasks: Sequence[ShardTask]) -> None:
    for path in (path for task in tasks for path in task.store.glob(f"{task.name}.tmp-*")):
        # A process that outlived its parent by a moment may still write there; it leaves at its next clip.
        shutil.rmtree(path, ignore_errors=True)


def _finish(
    store: Path,
    tasks: list[ShardTask],
    plan: dict[str, Any],
    config: PackConfig,
    dataset: str,
    about: dict[str, Any],
) -> Packed:
    """Write refused.csv and, last, the manifest."""
    shards = [summary for task in tasks if (summary := task.summary()) is not None]
    refused = sorted(row for shard in shards for row in shard["refused"])
    write_refused(store, refused)
    found = contents(store, shards)
    if not found["packed"]:
        for path in store.iterdir():
            if path.name != REFUSED:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        counts = ", ".join(f"{reason} {count}" for reason, count in Counter(row[3] for row in refused).most_common())
        clip_id, _, _, reason, detail = refused[0]
        raise UserError(
            f"none of {len(refused)} clips could be packed ({counts}); for example {clip_id}: {reason}, {detail}. "
            f"All are listed in {store / REFUSED}"
        )
    options = as_mapping(config)
    frontends = {item["name"]: item for item in options.pop("frontends")}
    manifest = {
        "format": STORE_FORMAT,
        "version": STORE_VERSION,
        "record_version": RECORD_VERSION,
        "dataset": dataset,
        "layout": {**plan["layout_options"], "name": plan["layout"]},
        "options": options,
        "frames": {key: options[key] for key in ("frames", "annotated_s", "short_side_px", "quality", "pixels")},
        "flow": shards[0]["flow"],
        "frontends": frontends,
        "waveform": {"sample_rate_hz": config.waveform_rate_hz} if config.waveform else None,
        **found,
        **about,
        "plan": tasks[0].plan,
        "repeatable": "the same clips, options and versions give the same bytes, but for 'dataset' in this file",
    }
    write_manifest(store, manifest)
    for task in tasks:
        _deaths_file(task).unlink(missing_ok=True)
    return Packed(expected=found["expected"], packed=found["packed"], refused=refused)
