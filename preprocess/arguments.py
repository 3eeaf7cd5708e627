"""The options of `python -m preprocess pack`, and those that layouts and engines have for themselves."""

import argparse
from pathlib import Path
from typing import Any

from configs.resolve import names, resolve
from preprocess.quality import CLIP_FLAGS
from preprocess.recognise import LAYOUTS

ENGINES = "preprocess.engines"
EXIT_CODES = """exit codes:
  0    packed, or packed before
  1    the store is whole and can be used, but clips of a test split were refused or are missing in INPUT, or more clips
       were refused than --max-refused says, or --strict finds anything refused or missing
  2    wrong input, or the disk is full; what was packed stays
  130  stopped; the same command goes on"""


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what may stand behind LAYOUT INPUT STORE, in groups."""
    _add_choice(command.add_argument_group("which clips, and what is said of them"))
    _add_content(command.add_argument_group("what is stored of a clip"))
    _add_running(command.add_argument_group("how it runs"))
    _add_judging(command.add_argument_group("when it fails"))


def _add_choice(group: Any) -> None:
    group.add_argument(
        "--list",
        metavar="[SPLIT=]LIST",
        action="append",
        default=[],
        dest="lists",
        help="pack only the clips of a bundled list (see configs/lists/README.md) or of a file with one id a line; may "
        "be repeated; SPLIT is train, but vggss_test, flickr_test, ... for the bundled test lists",
    )
    group.add_argument("--labels", metavar="FILE", type=Path, help="csv of id and label, like vggsound.csv")
    group.add_argument(
        "--annotations",
        metavar="PATH",
        type=Path,
        help="folder of Flickr-SoundNet's <id>.xml, or a file like vggss.json; default: Annotations in INPUT; clips of "
        "vggss_test get their published boxes without it",
    )
    group.add_argument(
        "--drop",
        nargs="+",
        metavar="FLAG",
        help="refuse clips with these flags, named and counted like every refusal: " + ", ".join(CLIP_FLAGS),
    )
    group.add_argument("--dataset", metavar="NAME", help="name kept in the manifest; default: that of INPUT")


def _add_content(group: Any) -> None:
    group.add_argument(
        "--frames",
        metavar="RULE",
        nargs="+",
        help="pictures to store: annotated (default), middle, or a rate like 1fps; several may be given",
    )
    group.add_argument(
        "--annotated-s",
        type=float,
        metavar="S",
        help="annotated instant from the clip's start, where the layout gives none and the clip lasts that long "
        "(else its middle); default 5",
    )
    group.add_argument("--short-side", type=int, metavar="PX", dest="short_side_px", help="of a picture; default 256")
    group.add_argument("--quality", type=int, metavar="Q", help="of JPEG; default 90")
    group.add_argument(
        "--pixels",
        choices=("jpeg", "raw", "both"),
        help="how pictures are stored: jpeg (default), the pixels that it decodes to (8 times the size, less CPU time "
        "in training), or both",
    )
    group.add_argument(
        "--flow",
        choices=("none", "signed", "published"),
        help="optical flow to the video's next picture: signed and scaled, or in the published 8 bits, which hold no "
        "motion to the left or up; default: published where the layout has flow pictures, else none",
    )
    group.add_argument(
        "--frontend",
        nargs="+",
        metavar="NAME",
        default=["logmel"],
        help="log-spectrograms to store, files of configs/frontends (default logmel), or 'none'",
    )
    group.add_argument(
        "--uint8",
        action="store_const",
        const="uint8",
        dest="spectrogram_dtype",
        help="store log-spectrograms in 8 bits a value instead of 16; the largest error is measured",
    )
    group.add_argument("--no-waveform", action="store_true", help="do not store the sound itself")
    group.add_argument("--waveform-rate", type=int, metavar="HZ", dest="waveform_rate_hz", help="default 16000")


def _add_running(group: Any) -> None:
    group.add_argument(
        "--engine",
        metavar="NAME",
        default="local",
        help="where packing processes run: one of those below; default local",
    )
    group.add_argument("--workers", type=int, metavar="N", help="processes; default: one a core; 0: in this process")
    group.add_argument(
        "--shard",
        type=_share,
        metavar="I/N",
        help="pack only the I-th of N shares, for batch schedulers: N jobs of the same command, in any order, into one "
        "STORE that all of them see; the one that finishes last completes the store",
    )
    group.add_argument(
        "--shard-clips", type=int, metavar="N", help="clips a shard; default: 16 shards, 8 to 4096 clips"
    )


def _add_judging(group: Any) -> None:
    group.add_argument(
        "--max-refused",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="exit with 1 if more clips are refused; default 0.5",
    )
    group.add_argument(
        "--strict", action="store_true", help="exit with 1 if any clip is refused or missing, not only of test splits"
    )


def _share(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"must be like 1/4, 2/4, ..., found '{text}'")
    return int(number), int(count)


def own_options(package: str, name: str) -> dict[str, str]:
    """Field -> option of the options that an extension has for itself."""
    own = "--" if package == LAYOUTS else f"--{name}-"
    keys = resolve(package, name).Config.model_fields
    return {key: f"{own}{key.replace('_', '-')}" for key in keys if key not in ("name", "workers")}


def help_of(package: str) -> str:
    """The extensions of a package with their own options, for `--help`."""
    lines = [f"{package.rpartition('.')[2]} and their own options:"]
    for name in names(package):
        extension = resolve(package, name)
        lines += ["", f"  {name}", *(f"    {line.strip()}" for line in (extension.__doc__ or "").strip().splitlines())]
        for key, option in own_options(package, name).items():
            lines.append(f"    {option} VALUE   {extension.Config.model_fields[key].description or ''}")
    return "\n".join(lines)


def parsed(package: str, name: str, rest: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The options among `rest` that the extension has for itself, and the others."""
    parser = argparse.ArgumentParser(prog=f"python -m preprocess pack {name}", add_help=False, allow_abbrev=False)
    for key, option in own_options(package, name).items():
        parser.add_argument(option, dest=key, default=argparse.SUPPRESS)
    options, others = parser.parse_known_args(rest)
    return vars(options), others
