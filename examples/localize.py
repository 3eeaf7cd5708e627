"""Where a sound comes from, in any picture or video:

    python examples/localize.py CHECKPOINT --image PICTURE --audio SOUND --out OUT [key=value ...]
    python examples/localize.py CHECKPOINT --video VIDEO --out OUT [key=value ...]
    python examples/localize.py CHECKPOINT --folder FOLDER --out OUT [key=value ...]

CHECKPOINT is a file, or a run folder for its newest, of any method. Writes into OUT, by the name of the picture or the
video: NAME.npz, the maps as the method gave them, and NAME.jpg, the picture under the map for the middle of the sound;
or NAME.mp4, the video under its maps, each for the window of sound around its moment, with the sound. A folder: every
video in it, and every picture beside a sound of the same name. `key=value` changes the checkpoint's config, for example
`train.device=cpu`, `evaluate.refine.flip={}` or `evaluate.refine.ogl={}`.
"""

import argparse
import itertools
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1]))

from configs.allocator import keep_freed_memory
from configs.errors import UserError, run_command
from evaluate import free_folder
from examples.heat import JPEG_QUALITY, STRENGTH, THRESHOLD, Heat, still_picture, write_video
from examples.localization import Localizer, Maps
from model.checkpoint import write_atomically
from model.console import make_console
from model.gallery import safe_name
from preprocess.listing import PICTURES, SOUNDS, VIDEOS
from preprocess.pictures import encode_jpeg

KINDS = {"video": VIDEOS, "picture": PICTURES, "sound": SOUNDS}
DAY_S = 86_400
ASK = "give --image PICTURE with --audio SOUND, or --video VIDEO, or --folder FOLDER"


class Command:
    """What the command line asks for, done clip by clip."""

    def __init__(self, asked: argparse.Namespace, localizer: Localizer, console: Console) -> None:
        self.asked, self.localizer, self.console = asked, localizer, console

    def clip(self, *files: Path) -> None:
        """A video, or a picture and a sound."""
        if len(files) == 1:
            self.video(*files)
        else:
            self.still(*files)

    def still(self, image: Path, audio: Path) -> None:
        """NAME.npz and NAME.jpg of a picture and a sound."""
        maps = self.localizer.of_still(image, audio, self.asked.start_s, self.asked.duration_s)
        covered = self._heat(maps).over(still_picture(image), 0.0, self.asked.strength, self.asked.threshold)
        out = self._place(image, ".jpg")
        write_atomically(out, lambda file: file.write(encode_jpeg(covered, JPEG_QUALITY)))
        self._finish(f"{image.name} with {audio.name}", maps, out)

    def video(self, path: Path) -> None:
        """NAME.npz and NAME.mp4 of a video."""
        asked = self.asked
        shown = self.console.is_terminal
        maps = self.localizer.of_video(path, asked.maps_per_s, asked.start_s, asked.duration_s, progress=shown)
        heat, out = self._heat(maps), self._place(path, ".mp4")
        write_atomically(
            out,
            lambda file: write_video(file, path, heat, maps.heard, asked.strength, asked.threshold, progress=shown),
        )
        self._finish(path.name, maps, out)

    def folder(self, path: Path) -> int:
        """Every clip of a folder; one that cannot be localized is named and the others go on."""
        clips, alone = clips_of(path)
        failed = 0
        for clip in clips:
            try:
                self.clip(*clip)
            except UserError as error:
                failed += 1
                self.console.print(f"left out: {error}", style="yellow", markup=False, soft_wrap=True)
        if alone:
            self.console.print(f"without a picture or a sound of the same name: {', '.join(alone)}", soft_wrap=True)
        self.console.print(f"{len(clips) - failed} of {len(clips)} clips done")
        return 1 if failed else 0

    def _heat(self, maps: Maps) -> Heat:
        return Heat(self.localizer, maps, maps.choose(self.asked.map))

    def _place(self, source: Path, suffix: str) -> Path:
        """Where the picture or video of a clip goes, in a folder that is there. Raises: UserError."""
        path = self.asked.out / f"{safe_name(source.stem)}{suffix}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {path.parent}: {error.strerror}; name another folder with --out") from error
        return path

    def _finish(self, what: str, maps: Maps, shown: Path) -> None:
        """The maps beside the picture or video of them, which may fail and so comes first; and a line about both."""
        path = shown.with_suffix(".npz")
        write_atomically(path, lambda file: maps.save(path.stem, file))
        first, last = maps.heard.interval_s(maps.at_s[0])[0], maps.heard.interval_s(maps.at_s[-1])[1]
        count = "1 map" if len(maps.pictures) == 1 else f"{len(maps.pictures)} maps"
        self.console.print(
            f"{what}: {count}, heard {first:.1f} to {last:.1f} s; wrote {path}, {shown.name}", soft_wrap=True
        )
        if maps.heard.silent:
            self.console.print(
                "warning: this sound is silent: the map shows what the picture alone draws", style="yellow"
            )


def clips_of(folder: Path) -> tuple[list[tuple[Path, ...]], list[str]]:
    """The clips of a folder, by name: `(video,)`, or `(picture, sound)` of one name; and files without their other.

    Raises: UserError if there are none, or two would be written under one name.
    """
    if not folder.is_dir():
        raise UserError(f"no folder at {folder}")
    files: dict[str, dict[str, list[Path]]] = {}
    for path in sorted(folder.iterdir()):
        for kind, suffixes in KINDS.items():
            if path.suffix.lower() in suffixes and path.is_file():
                files.setdefault(path.stem, {kind: [] for kind in KINDS})[kind].append(path)
    clips: list[tuple[Path, ...]] = []
    alone: list[str] = []
    for stem, found in files.items():
        videos, pairs = found["video"], list(itertools.product(found["picture"], found["sound"]))
        if len(videos) + len(pairs) > 1:
            named = ", ".join(path.name for paths in found.values() for path in paths)
            raise UserError(f"{folder} holds more than one clip of the name {stem}: {named}; keep one of them")
        clips += [*((video,) for video in videos), *pairs]
        alone += [] if videos or pairs else [path.name for paths in found.values() for path in paths]
    if not clips:
        kinds = "; ".join(f"{kind}: {' '.join(suffixes)}" for kind, suffixes in KINDS.items())
        raise UserError(f"no clip in {folder}: expected videos, or pictures and sounds of the same name ({kinds})")
    return clips, alone


def number(low: float, high: float) -> Callable[[str], float]:
    """What reads an argument from `low` to `high`."""

    def read(text: str) -> float:
        try:
            if low <= (value := float(text)) <= high:
                return value
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"'{text}' is no number from {low:g} to {high:g}")

    return read


def one_clip(asked: argparse.Namespace) -> dict[str, Path]:
    """What is to be localized: `image` and `audio`, or `video`, or `folder`. Raises: UserError."""
    given = {name: getattr(asked, name) for name in ("image", "audio", "video", "folder") if getattr(asked, name)}
    for name, paths in given.items():
        if len(paths) > 1:
            raise UserError(f"{len(paths)} times --{name}: one clip at a time; put several into a folder for --folder")
    stray = [text for text in asked.overrides if "=" not in text]
    if stray:
        raise UserError(f"'{stray[0]}' is no key=value, and one clip comes at a time; {ASK}")
    if sorted(given) not in (["audio", "image"], ["video"], ["folder"]):
        found = " and ".join(f"--{name}" for name in given) or "none of them"
        raise UserError(f"found {found}; {ASK}")
    return {name: paths[0] for name, paths in given.items()}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("localize.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    for name in ("image", "audio", "video", "folder"):
        parser.add_argument(f"--{name}", type=Path, action="append")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")
    parser.add_argument(
        "--start-s", type=number(0, DAY_S), default=0.0, help="from this second of the sound or video on"
    )
    parser.add_argument("--duration-s", type=number(0.1, DAY_S), help="so many seconds of it")
    parser.add_argument("--maps-per-s", type=number(0.001, 1000), default=4.0, help="of a video; 4, smooth in between")
    parser.add_argument("--map", metavar="NAME", help="which map to show; the last one that a refinement adds")
    parser.add_argument("--strength", type=number(0, 1), default=STRENGTH, help=f"of the colour; {STRENGTH:g}")
    parser.add_argument(
        "--threshold", type=number(0, 1), default=THRESHOLD, help=f"of the edge, in shares; {THRESHOLD:g}"
    )
    parser.add_argument("--flow", choices=("signed", "published"), help="how the method was shown motion")
    asked = parser.parse_intermixed_args(argv)

    clip = one_clip(asked)
    free_folder(asked.out, asked.overwrite)
    console = make_console()
    localizer = Localizer(asked.checkpoint, asked.overrides, asked.flow)
    if localizer.device.type == "cpu":
        keep_freed_memory()
    if not localizer.flow_is_known:
        console.print(
            "note: nothing says how this method was shown motion: taken as signed; --flow published if it was that"
        )
    if localizer.with_flow and "image" in clip:
        console.print("note: this method looks at motion, and a picture has none: its flow is zero everywhere")
    command = Command(asked, localizer, console)
    if "folder" in clip:
        return command.folder(clip["folder"])
    command.clip(*clip.values())
    return 0


if __name__ == "__main__":
    run_command(main)
