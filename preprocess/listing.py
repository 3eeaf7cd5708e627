"""From files to clips: one pass over the folders, names only."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from configs.errors import UserError
from configs.ids import normalise_id
from preprocess.layout import Layout, LeftOut, SourceClip, check_id, inside

VIDEOS = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v")
PICTURES = (".jpg", ".jpeg", ".png")
SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".m4a")


def find_files(root: Path, folder: str, suffixes: tuple[str, ...], *, deep: bool = False) -> Iterator[str]:
    """Paths relative to `root`, in the order of their names, of the files in a folder (`deep`: and in those below it).

    Hidden files and folders are left out. Nothing is asked of a file but its name. Raises: UserError if a folder cannot
    be read, or a symbolic link leads out of `root`.
    """
    try:
        with os.scandir(root / folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"cannot read {root / folder}: {error.strerror}") from error
    prefix = f"{folder}/" if folder else ""
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = prefix + entry.name
        if entry.is_symlink():
            inside(root, path, str(root / (folder or ".")))
        if entry.is_dir():
            # A link leads to files of INPUT, which are found at their own place, or back up in a circle.
            if deep and not entry.is_symlink():
                yield from find_files(root, path, suffixes, deep=True)
        elif entry.name.lower().endswith(suffixes):
            yield path


def pictures_by_id(layout: Layout, folder: str, suffixes: tuple[str, ...], frame: str) -> dict[str, str]:
    """Canonical clip id -> its picture in a folder: a file `<id>.jpg`, or one of the files in a folder `<id>`.

    frame: which of several, see `chosen`.
    """
    depth = folder.count("/") + 1
    groups: dict[str, list[str]] = {}
    alone = []
    for path in find_files(layout.root, folder, suffixes, deep=True):
        parts = path.split("/")
        if len(parts) > depth + 1:
            groups.setdefault(normalise_id(parts[depth]), []).append(path)
        else:
            alone.append(path)
    grouped = chosen(layout, groups, frame)
    paths = [*alone, *grouped.values()]
    return by_id(layout, paths, [*(normalise_id(stem(path)) for path in alone), *grouped])


def chosen(layout: Layout, groups: dict[str, list[str]], frame: str) -> dict[str, str]:
    """Clip id -> one of its sorted pictures: "first", "middle", or that of a name; of a single one, that one.

    A clip without a picture of the name is left out by name.
    """
    found = {}
    for clip_id, paths in groups.items():
        if frame == "first" or len(paths) == 1:
            found[clip_id] = paths[0]
        elif frame == "middle":
            found[clip_id] = paths[len(paths) // 2]
        elif named := [path for path in paths if path.endswith(f"/{frame}")]:
            found[clip_id] = named[0]
        else:
            detail = f"{frame} is not among its {len(paths)} pictures"
            layout.left_out.append(LeftOut(clip_id, "", "no_picture", detail))
    return found


def stem(path: str) -> str:
    """The name of a file without its folders and its last suffix."""
    return os.path.splitext(path.rpartition("/")[2])[0]  # noqa: PTH122  (pathlib is five times slower here)


def by_id(layout: Layout, paths: Iterable[str], ids: Iterable[str] | None = None) -> dict[str, str]:
    """Canonical clip id -> path. ids: of each path; None: its stem. Of two files of one clip the first is taken, the
    other is left out by name.
    """
    found: dict[str, str] = {}
    paths = list(paths)
    for path, clip_id in zip(paths, ids or map(normalise_id, map(stem, paths))):
        if clip_id in found:
            layout.left_out.append(LeftOut(clip_id, "", "duplicate", f"{path}; {found[clip_id]} is taken"))
        else:
            found[clip_id] = path
    return found


def paired(layout: Layout, pictures: dict[str, str], sounds: dict[str, str]) -> list[SourceClip]:
    """Clips of a still picture and a sound each; what has only one of them is left out by name.

    Raises: UserError if no picture has a sound.
    """
    clips = [
        SourceClip(clip_id=check_id(clip_id, path), image=path, audio=sounds[clip_id])
        for clip_id, path in pictures.items()
        if clip_id in sounds
    ]
    if not clips:
        raise UserError(
            f"{layout.source}: {len(pictures)} pictures and {len(sounds)} sounds, none of one name"
            f"{_example(pictures, 'picture')}{_example(sounds, 'sound')}"
            + "".join(f"; {item.clip_id}: {item.detail}" for item in layout.left_out[:1])
        )
    for clip_id, path in pictures.items():
        if clip_id not in sounds:
            layout.left_out.append(LeftOut(clip_id, "", "no_sound", path))
    for clip_id, path in sounds.items():
        if clip_id not in pictures:
            layout.left_out.append(LeftOut(clip_id, "", "no_picture", path))
    return clips


def _example(files: dict[str, str], kind: str) -> str:
    return f"; a {kind}: {next(iter(files.values()))}" if files else ""


def folder_of(layout: Layout, *names: str) -> str:
    """The first of the folders that is there, relative to the layout's root. Raises: UserError naming them."""
    for name in names:
        if (layout.root / name).is_dir():
            return inside(layout.root, name, f"layout '{layout.config.name}'")
    raise UserError(f"{layout.source} has no folder {' or '.join(names)}, as the layout '{layout.config.name}' needs")
