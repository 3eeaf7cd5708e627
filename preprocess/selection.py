"""Which clips of an input are packed, into which split, with which truth; and what is known of that beforehand."""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.id_lists import list_file, list_names, load_list, read_rows
from configs.ids import normalise_id, source_of
from pipeline.store import id_hash
from preprocess.annotations import VGGSS_INSTANT_S, Annotated, flickr_truth, oddities, vggss_truth
from preprocess.layout import Layout, LeftOut, SourceClip, inside
from preprocess.listing import find_files, stem

LEFT_OUT_FILE = "left_out.csv"
_TEST_LISTS = {"vggss_test": "vggss_test", "flickr_test": "flickr_test_slavc"}
_ANNOTATIONS = "Annotations"
_ABSENT = ("missing", "no_sound", "no_picture")
_SPLIT = re.compile(r"(\w+)=(.+)")


@dataclass(kw_only=True)
class Selection:
    """The clips to pack and what a manifest says of them.

    lists: what was asked for: split, list, id_hash, expected, found, missing, and duplicates (ids that the list
    repeats) of each list, or of each split of the layout where there is no list. truth: split ->
    clips with boxes, with masks, with nothing; boxes outside of the picture and without area; clips whose truth is
    empty. leaks: split -> test set -> its size and how many of its clips are in the split by id and by source.
    """

    clips: list[SourceClip]
    lists: list[dict[str, Any]] = field(default_factory=list)
    truth: dict[str, dict[str, int]] = field(default_factory=dict)
    leaks: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def about(self) -> dict[str, Any]:
        """The entries of a store's manifest."""
        return {
            "lists": self.lists,
            "truth": self.truth,
            "leaks": self.leaks,
            "left_out": dict(sorted(Counter(item.reason for item in self.left_out).items())),
        }


def is_test_split(split: str) -> bool:
    """Whether a split is for scoring, so that a missing clip changes what its scores mean."""
    return "test" in split or "silent" in split


def select(
    layout: Layout,
    clips: list[SourceClip],
    *,
    lists: Sequence[str] = (),
    labels: Path | None = None,
    annotations: Path | None = None,
) -> Selection:
    """The clips of a layout that the lists pick, or all of them.

    lists: `NAME`, `PATH`, `SPLIT=NAME` or `SPLIT=PATH`. labels: a list whose second column is the label. annotations: a
    file like vggss.json, or a folder of Flickr-SoundNet's `<id>.xml`; None: `Annotations` in the input, if it is there.
    Raises: UserError if a list or file is not there, a list picks nothing, or two splits want the same clip.
    """
    chosen = _picked(layout, clips, lists) if lists else _whole(layout, clips)
    if labels is not None:
        _label(chosen, labels, keep_splits=bool(lists))
    _annotate(chosen, layout.root, annotations)
    for split in sorted({clip.split for clip in chosen.clips}):
        of_split = [clip for clip in chosen.clips if clip.split == split]
        if any(clip.boxes is not None or clip.mask is not None for clip in of_split) or is_test_split(split):
            chosen.truth[split] = _truth_counts(of_split)
        if not is_test_split(split):
            chosen.leaks[split] = leaks(clip.clip_id for clip in of_split)
    if not lists and any(said["by_id"] for tests in chosen.leaks.values() for said in tests.values()):
        chosen.notes.append(
            "there are test clips in it and no list says so: `--list vggss_test` packs them as a test split with their "
            "boxes (flickr_test_slavc those of Flickr), `--list vggsound_144k_clean` what is free of them"
        )
    return chosen


def leaks(clip_ids: Iterable[str]) -> dict[str, dict[str, int]]:
    """Test set -> how many of its clips are among the ids: by id, and by the recording that they were cut from."""
    ids = {normalise_id(clip_id) for clip_id in clip_ids}
    sources = {source_of(clip_id) for clip_id in ids}
    found = {}
    for name, test in _TEST_LISTS.items():
        tested = load_list(test)
        found[name] = {
            "of": len(tested),
            "by_id": sum(clip_id in ids for clip_id in tested),
            "by_source": sum(source_of(clip_id) in sources for clip_id in tested),
        }
    return found


def write_left_out(store: Path, rows: Sequence[LeftOut]) -> Path:
    """Write `left_out.csv` into a store. Returns: its path."""
    path = store / LEFT_OUT_FILE
    temporary = path.with_suffix(".csv.tmp")
    # File names need not be text: bytes that are none are written as escapes.
    with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("clip_id", "split", "reason", "detail"))
        writer.writerows((row.clip_id, row.split, row.reason, row.detail) for row in rows)
    temporary.replace(path)
    return path


def read_left_out(store: Path) -> list[LeftOut]:
    """The rows of `left_out.csv`; none if there is no such file."""
    path = store / LEFT_OUT_FILE
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [LeftOut(*row) for row in csv.reader(file)][1:]


def joined(
    manifests: Sequence[dict[str, Any]], ids: dict[str, list[str]], left_out: Sequence[Sequence[LeftOut]]
) -> tuple[dict[str, Any], list[LeftOut]]:
    """What the manifest of a store made of others says as `Selection.about` does, and what it leaves out: a clip that
    one of them lacks and another one holds is not missing. ids: those of each split of the new store; left_out: the
    rows of each of the others.
    """
    truth: dict[str, Counter[str]] = {}
    for manifest in manifests:
        for split, counts in manifest.get("truth", {}).items():
            truth.setdefault(split, Counter()).update(counts)
    packed = {clip_id for names in ids.values() for clip_id in names}
    all_rows = dict.fromkeys(row for rows in left_out for row in rows)
    rows = [row for row in all_rows if row.reason not in _ABSENT or row.clip_id not in packed]
    about = {
        "lists": _joined_lists(manifests, left_out),
        "truth": {split: dict(counts) for split, counts in sorted(truth.items())},
        "leaks": {split: leaks(names) for split, names in sorted(ids.items()) if not is_test_split(split)},
        "left_out": dict(sorted(Counter(row.reason for row in rows).items())),
    }
    return about, rows


def _joined_lists(manifests: Sequence[dict[str, Any]], left_out: Sequence[Sequence[LeftOut]]) -> list[dict[str, Any]]:
    """The lists of all stores; of one that is the only list of its split, what all of them lack is missing."""
    of_split: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for number, manifest in enumerate(manifests):
        for item in manifest.get("lists", []):
            of_split.setdefault(item["split"], []).append((number, item))
    lists = []
    for split, items in of_split.items():
        first = items[0][1]
        same = all((item["list"], item["id_hash"]) == (first["list"], first["id_hash"]) for _, item in items)
        if len(items) == 1 or not same:
            lists += [item for _, item in items]
            continue
        absent = [
            {row.clip_id for row in left_out[number] if row.split == split and row.reason in _ABSENT}
            for number, _ in items
        ]
        missing = len(set.intersection(*absent))
        lists.append({**first, "found": first["expected"] - missing, "missing": missing})
    return lists


def _whole(layout: Layout, clips: list[SourceClip]) -> Selection:
    found = Counter(clip.split for clip in clips)
    missing = Counter(item.split for item in layout.left_out if item.reason == "missing")
    lists = [
        {
            "split": split,
            "list": layout.config.name,
            "id_hash": id_hash(clip.clip_id for clip in clips if clip.split == split),
            "expected": layout.expected.get(split, found[split] + missing[split]),
            "found": found[split],
            "missing": layout.expected.get(split, found[split] + missing[split]) - found[split],
            "duplicates": 0,
        }
        for split in sorted(found | layout.expected)
    ]
    return Selection(clips=clips, lists=lists, left_out=list(layout.left_out), notes=list(layout.notes))


def _picked(layout: Layout, clips: list[SourceClip], lists: Sequence[str]) -> Selection:
    by_id = {normalise_id(clip.clip_id): clip for clip in clips}
    if len(by_id) < len(clips):
        count = len(clips) - len(by_id)
        raise UserError(f"{layout.source}: {count} clips are named twice, in different forms of one id")
    known = {item.clip_id: item for item in layout.left_out if item.reason in _ABSENT}
    picked: dict[str, SourceClip] = {}
    chosen = Selection(clips=[], notes=list(layout.notes))
    for text in lists:
        split, name = _spec(text)
        rows = load_list(name)
        duplicates = 0 if name in list_names() else sum(1 for _ in read_rows(list_file(name))) - len(rows)
        found = 0
        for clip_id in rows:
            clip = _clip(clip_id, by_id)
            if clip is None:
                item = known.get(clip_id)
                reason, detail = (item.reason, item.detail) if item else ("missing", f"in list {name}")
                chosen.left_out.append(LeftOut(clip_id, split, reason, detail))
                continue
            found += 1
            other = picked.get(clip_id)
            if other is not None and other.split != split:
                raise UserError(_overlap(rows, picked, split, text))
            picked[clip_id] = replace(clip, clip_id=clip_id, split=split)
        if not found:
            raise UserError(f"none of the {len(rows)} clips of --list {text} is in {layout.source}")
        chosen.lists.append(
            {
                "split": split,
                "list": name,
                "id_hash": id_hash(rows),
                "expected": len(rows),
                "found": found,
                "missing": len(rows) - found,
                "duplicates": duplicates,
            }
        )
    chosen.clips = list(picked.values())
    chosen.left_out += [item for item in layout.left_out if item.reason == "duplicate" and item.clip_id in picked]
    used = {part for clip_id in picked for part in clip_id.split("+")}
    if by_id.keys() - used:
        chosen.notes.append(f"{len(by_id.keys() - used)} of {len(by_id)} clips of {layout.source} are on no list")
    return chosen


def _spec(text: str) -> tuple[str, str]:
    """Split and list of a `--list`. A bundled test list has its own split, everything else is "train"."""
    match = None if Path(text).is_file() else _SPLIT.fullmatch(text)
    if match:
        return match[1], match[2]
    if text in list_names():
        if text.endswith("_silent") or text == "vggsound_test":
            return text, text
        for prefix, test in (("vggss_", "vggss_test"), ("flickr_test", "flickr_test")):
            if text.startswith(prefix):
                return test, text
    return "train", text


def _clip(clip_id: str, by_id: dict[str, SourceClip]) -> SourceClip | None:
    """The clip of an id; of `a+b`, the picture of a with the sound of b, in which nothing is to be seen that sounds."""
    if clip_id in by_id or "+" not in clip_id:
        return by_id.get(clip_id)
    seen, heard = (by_id.get(part) for part in clip_id.split("+", 1))
    if seen is None or heard is None:
        return None
    if seen.start_s != heard.start_s:
        raise UserError(
            f"the negative {clip_id} cannot be packed: its picture starts at {seen.start_s:g} s of {seen.file} and its "
            f"sound at {heard.start_s:g} s of {heard.audio or heard.file}; cut the files to the clips first"
        )
    return replace(
        seen,
        label="non-sounding",
        audio=heard.audio or heard.video,
        audio_key=heard.audio_key,
        spectrogram=heard.spectrogram,
        boxes=[],
        mask=None,
        extra={**seen.extra, "negative": True},
    )


def _overlap(rows: list[str], picked: dict[str, SourceClip], split: str, text: str) -> str:
    both = [clip_id for clip_id in rows if clip_id in picked and picked[clip_id].split != split]
    return (
        f"{len(both)} clips of --list {text} are in split '{picked[both[0]].split}' already, {both[0]} among them, and "
        "a clip of a store is in one split only. Take a list without them (vggsound_144k_clean, flickr_144k_clean), or "
        "pack the two lists into two stores"
    )


def _label(chosen: Selection, labels: Path, keep_splits: bool) -> None:
    rows = {row.clip_id: row for row in read_rows(labels)}
    named = 0
    for number, clip in enumerate(chosen.clips):
        row = rows.get(normalise_id(clip.clip_id))
        if row is None:
            continue
        named += 1
        split = "vggsound_test" if row.split == "test" and not keep_splits else clip.split
        chosen.clips[number] = replace(clip, label=clip.label or row.label, split=split)
    if not named:
        raise UserError(f"{labels} labels none of the {len(chosen.clips)} clips")
    if named < len(chosen.clips):
        chosen.notes.append(f"{len(chosen.clips) - named} of {len(chosen.clips)} clips are not in {labels}")


def _annotate(chosen: Selection, root: Path, annotations: Path | None) -> None:
    """Give clips their published truth, where they have none."""
    if annotations is None and (root / _ANNOTATIONS).is_dir():
        annotations = root / inside(root, _ANNOTATIONS, str(root))
        chosen.notes.append(f"annotations are taken from {annotations}")
    bundled = vggss_truth() if any(clip.split == "vggss_test" for clip in chosen.clips) else {}
    truths: dict[str, Annotated] = {}
    if annotations is not None and annotations.is_dir():
        wanted = {normalise_id(clip.clip_id) for clip in chosen.clips}
        files = {stem(path): path for path in find_files(annotations.resolve(), "", (".xml",))}
        truths = {name: flickr_truth(annotations / files[name]) for name in wanted & files.keys()}
    elif annotations is not None:
        truths = vggss_truth(annotations)
    given = 0
    for number, clip in enumerate(chosen.clips):
        clip_id = normalise_id(clip.clip_id)
        truth = truths.get(clip_id) or (bundled.get(clip_id) if clip.split == "vggss_test" else None)
        if truth is None or clip.boxes is not None or clip.mask is not None:
            continue
        given += clip_id in truths
        chosen.clips[number] = replace(
            clip,
            label=clip.label or truth.label,
            boxes=truth.boxes,
            as_published=True,
            annotated_s=VGGSS_INSTANT_S if clip.video and clip.annotated_s is None else clip.annotated_s,
            extra={**clip.extra, "annotators": truth.annotators} if truth.annotators > 1 else clip.extra,
        )
    if annotations is not None and not given:
        raise UserError(f"{annotations} holds the truth of none of the {len(chosen.clips)} clips")


def _truth_counts(clips: list[SourceClip]) -> dict[str, int]:
    boxes = [clip.boxes for clip in clips if clip.boxes is not None]
    odd = [oddities(rows) for rows in boxes]
    return {
        "clips": len(clips),
        "with_boxes": len(boxes),
        "with_mask": sum(clip.mask is not None for clip in clips),
        "without": sum(clip.boxes is None and clip.mask is None for clip in clips),
        "boxes": sum(map(len, boxes)),
        "boxes_outside": sum(outside for outside, _ in odd),
        "boxes_without_area": sum(flat for _, flat in odd),
        "clips_with_empty_truth": sum(len(rows) == flat for rows, (_, flat) in zip(boxes, odd)),
    }
