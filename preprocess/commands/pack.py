"""`python -m preprocess pack LAYOUT INPUT STORE`: files of a data set into a store."""

import argparse
import signal
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from configs.errors import UserError
from configs.load import check, load_frontend
from configs.resolve import names, resolve
from pipeline.store import Store
from preprocess.layout import LEFT_OUT, Layout, SourceClip
from preprocess.media import REASONS
from preprocess.options import PackConfig
from preprocess.progress import PackProgress
from preprocess.quality import CLIP_FLAGS
from preprocess.recognise import recognise
from preprocess.report import HTML, write_report
from preprocess.selection import Selection, is_test_split, select, write_left_out
from preprocess.task import Engine
from preprocess.writer import REFUSED, Packed, Stopped, default_shard_clips, pack

_LAYOUTS = "preprocess.layouts"
_ENGINES = "preprocess.engines"
_SHOWN_REFUSALS = 10
_SHOWN_LEFT_OUT = 4


def add(commands: Any) -> None:
    """Add this command to the parser."""
    command = commands.add_parser(
        "pack",
        help="pack the clips of INPUT into STORE; the same command again goes on where it stopped",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # a layout's own option may begin like one of these
        epilog=f"{_help(_LAYOUTS)}\n\n{_help(_ENGINES)}",
    )
    command.set_defaults(run=_pack, options_of_its_own=True)
    command.add_argument("layout", metavar="LAYOUT", help="how INPUT is kept: one of those below, or 'auto'")
    command.add_argument("input", metavar="INPUT", type=Path)
    command.add_argument(
        "store", metavar="STORE", type=Path, help="folder to write; new, empty, or of the same command"
    )
    command.add_argument(
        "--list",
        metavar="[SPLIT=]LIST",
        action="append",
        default=[],
        dest="lists",
        help="pack only the clips of a bundled list (see configs/lists/README.md) or of a file with one id a line; may "
        "be repeated; SPLIT is train, but vggss_test, flickr_test, ... for the bundled test lists",
    )
    command.add_argument("--labels", metavar="FILE", type=Path, help="csv of id and label, like vggsound.csv")
    command.add_argument(
        "--annotations",
        metavar="PATH",
        type=Path,
        help="folder of Flickr-SoundNet's <id>.xml, or a file like vggss.json; default: Annotations in INPUT; clips of "
        "vggss_test get their published boxes without it",
    )
    command.add_argument(
        "--frames",
        metavar="RULE",
        nargs="+",
        help="pictures to store: annotated (default), middle, or a rate like 1fps; several may be given",
    )
    command.add_argument(
        "--annotated-s",
        type=float,
        metavar="S",
        help="annotated instant from the clip's start, where the layout gives none and the clip lasts that long "
        "(else its middle); default 5",
    )
    command.add_argument("--short-side", type=int, metavar="PX", dest="short_side_px", help="of a picture; default 256")
    command.add_argument("--quality", type=int, metavar="Q", help="of JPEG; default 90")
    command.add_argument(
        "--pixels",
        choices=("jpeg", "raw", "both"),
        help="how pictures are stored: jpeg (default), the pixels that it decodes to (8 times the size, less CPU time "
        "in training), or both",
    )
    command.add_argument(
        "--flow",
        choices=("none", "signed", "published"),
        help="optical flow to the video's next picture: signed and scaled, or in the published 8 bits, which hold no "
        "motion to the left or up; default: published where the layout has flow pictures, else none",
    )
    command.add_argument(
        "--frontend",
        nargs="+",
        metavar="NAME",
        default=["logmel"],
        help="log-spectrograms to store, files of configs/frontends (default logmel), or 'none'",
    )
    command.add_argument(
        "--uint8",
        action="store_const",
        const="uint8",
        dest="spectrogram_dtype",
        help="store log-spectrograms in 8 bits a value instead of 16; the largest error is measured",
    )
    command.add_argument("--no-waveform", action="store_true", help="do not store the sound itself")
    command.add_argument("--waveform-rate", type=int, metavar="HZ", dest="waveform_rate_hz", help="default 16000")
    command.add_argument("--dataset", metavar="NAME", help="name kept in the manifest; default: that of INPUT")
    command.add_argument(
        "--engine",
        metavar="NAME",
        default="local",
        help="where packing processes run: one of those below; default local",
    )
    command.add_argument("--workers", type=int, metavar="N", help="processes; default: one a core; 0: in this process")
    command.add_argument(
        "--shard",
        type=_share,
        metavar="I/N",
        help="pack only the I-th of N shares, for batch schedulers: N jobs of the same command, in any order, into one "
        "STORE that all of them see; the one that finishes last completes the store",
    )
    command.add_argument(
        "--shard-clips", type=int, metavar="N", help="clips a shard; default: 16 shards, 8 to 4096 clips"
    )
    command.add_argument(
        "--drop",
        nargs="+",
        metavar="FLAG",
        help="refuse clips with these flags, named and counted like every refusal: " + ", ".join(CLIP_FLAGS),
    )
    command.add_argument(
        "--max-refused", type=float, default=0.5, metavar="SHARE", help="exit with 1 above this share; default 0.5"
    )
    command.add_argument(
        "--strict", action="store_true", help="exit with 1 if any clip is refused, not only of test splits"
    )


def _share(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"must be like 1/4, 2/4, ..., found '{text}'")
    return int(number), int(count)


def _own_options(package: str, name: str) -> dict[str, str]:
    """Field -> option of the options that an extension has for itself."""
    own = "--" if package == _LAYOUTS else f"--{name}-"
    keys = resolve(package, name).Config.model_fields
    return {key: f"{own}{key.replace('_', '-')}" for key in keys if key not in ("name", "workers")}


def _help(package: str) -> str:
    lines = [f"{package.rpartition('.')[2]} and their own options:"]
    for name in names(package):
        extension = resolve(package, name)
        lines += ["", f"  {name}", *(f"    {line.strip()}" for line in (extension.__doc__ or "").strip().splitlines())]
        for key, option in _own_options(package, name).items():
            lines.append(f"    {option} VALUE   {extension.Config.model_fields[key].description or ''}")
    return "\n".join(lines)


def _parsed(package: str, name: str, rest: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The options among `rest` that the extension has for itself, and the others."""
    parser = argparse.ArgumentParser(prog=f"python -m preprocess pack {name}", add_help=False, allow_abbrev=False)
    for key, option in _own_options(package, name).items():
        parser.add_argument(option, dest=key, default=argparse.SUPPRESS)
    options, others = parser.parse_known_args(rest)
    return vars(options), others


def _engine(options: argparse.Namespace, rest: list[str]) -> tuple[Engine, list[str]]:
    """The engine, and the options that are not its own. Raises: UserError."""
    engine = resolve(_ENGINES, options.engine)
    given, others = _parsed(_ENGINES, options.engine, rest)
    workers = {} if options.workers is None else {"workers": options.workers}
    what = f"--engine {options.engine}: --workers or its own options"
    return engine(check(engine.Config, {**workers, **given, "name": options.engine}, what)), others


def _layout(name: str, source: Path, rest: list[str]) -> Layout:
    """The layout with its own options, which are the fields of its `Config`. Raises: UserError."""
    layout = resolve(_LAYOUTS, name)
    given, unknown = _parsed(_LAYOUTS, name, rest)
    if unknown:
        known = _own_options(_LAYOUTS, name).values()
        raise UserError(
            f"unknown option {unknown[0]}; the layout '{name}' has {', '.join(known) or 'none of its own'}. "
            "See `python -m preprocess pack --help`"
        )
    if not source.exists():
        raise UserError(f"no input at {source}")
    return layout(check(layout.Config, {**given, "name": name}, f"layout '{name}'"), source)


def _pack(options: argparse.Namespace, rest: list[str]) -> int:
    engine, rest = _engine(options, rest)
    console = Console()
    if options.layout == "auto":
        options.layout, why = recognise(options.input)
        console.print(f"recognised layout '{options.layout}': {_printable(why)}")
    layout = _layout(options.layout, options.input, rest)
    frontends = (
        [] if options.frontend == ["none"] else [load_frontend(name) for name in dict.fromkeys(options.frontend)]
    )
    twice = [name for name, count in Counter(item.name for item in frontends).items() if count > 1]
    if twice:
        raise UserError(f"two front-ends are named '{twice[0]}'; give one of the files another name")
    given: dict[str, Any] = {
        key: value
        for key in (
            "frames",
            "pixels",
            "annotated_s",
            "short_side_px",
            "quality",
            "spectrogram_dtype",
            "waveform_rate_hz",
            "drop",
        )
        if (value := getattr(options, key)) is not None
    }
    config = check(
        PackConfig, {**given, "frontends": frontends, "waveform": not options.no_waveform}, "python -m preprocess pack"
    )
    if not 0 <= options.max_refused <= 1:
        raise UserError(f"--max-refused is a share from 0 to 1, found {options.max_refused:g}")
    if options.shard_clips is not None and options.shard_clips < 1:
        raise UserError(f"--shard-clips must be at least 1, found {options.shard_clips}")
    chosen = select(layout, layout.clips(), lists=options.lists, labels=options.labels, annotations=options.annotations)
    clips = chosen.clips
    if any(clip.spectrogram for clip in clips) and (config.waveform or len(config.frontends) != 1):
        raise UserError(
            f"the layout '{options.layout}' holds spectrograms and no sound: give --no-waveform and the one --frontend "
            "that they were made with"
        )
    config = config.model_copy(update={"flow": _flow(options.flow, clips)})
    _show(chosen, console)
    shard_clips = options.shard_clips or default_shard_clips(len(clips))
    progress = PackProgress(console)

    def stop(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    heard = signal.signal(signal.SIGTERM, stop)
    try:
        with progress:
            packed = pack(
                layout,
                options.store,
                config,
                engine,
                dataset=options.dataset or layout.root.name,
                shard_clips=shard_clips,
                share=options.shard,
                clips=clips,
                about=chosen.about(),
                report=progress.report,
                found=progress.found,
            )
    except Stopped as stopped:
        console.print(str(stopped))
        return 130
    finally:
        signal.signal(signal.SIGTERM, heard)
    if chosen.left_out:
        console.print(f"left out: {len(chosen.left_out)} clips, see {write_left_out(options.store, chosen.left_out)}")
    if packed.shards_left:
        console.print(
            f"packed {packed.packed} of {packed.expected} clips of share {options.shard[0]}/{options.shard[1]} "
            f"({progress.rate()}); {packed.shards_left} shards of other shares to go before {options.store} is whole"
        )
    elif packed.new:
        console.print(f"packed {packed.packed} of {packed.expected} clips into {options.store} ({progress.rate()})")
    else:
        console.print(f"already packed: {options.store} holds {packed.packed} of {packed.expected} clips of this plan")
    if config.flow != "none" and not packed.shards_left:
        with Store(options.store) as store:
            flowing = sum(store.index["flow"])
        if flowing < packed.packed:
            console.print(
                f"note: {packed.packed - flowing} of {packed.packed} clips have no flow: a still picture, or the only "
                "one of a video, has no next one"
            )
    if not packed.shards_left and (packed.new or not (options.store / HTML).is_file()):
        flagged = write_report(options.store).flagged
        found = ", ".join(f"{name} {int(marks.sum())}" for name, marks in flagged.items() if marks.any())
        console.print(f"quality: {found or 'no flags'}; see {options.store / HTML}", soft_wrap=True)
    return _judge(packed, options, console)


def _flow(asked: str | None, clips: list[SourceClip]) -> str:
    """How flow is stored. Raises: UserError if signed is asked where the layout has flow in 8 bits."""
    ready = any(clip.flow_x is not None for clip in clips)
    if asked == "signed" and ready:
        raise UserError(
            "--flow signed: this layout has flow pictures in the published 8 bits, which hold no motion to the left or "
            "up. Use --flow published to take them over, or pack the videos themselves"
        )
    return asked or ("published" if ready else "none")


def _printable(text: str) -> str:
    """Text for the console; bytes of a file name that are no text as escapes."""
    return escape(text.encode("utf-8", "backslashreplace").decode())


def _show(chosen: Selection, console: Console) -> None:
    """What will be packed, what is missing, and what a training split knows of the test sets."""
    for note in chosen.notes:
        console.print(f"note: {escape(note)}")
    for item in chosen.lists:
        counts = ", ".join(f"{item[key]:,} {key}" for key in ("expected", "found", "missing", "duplicates"))
        console.print(f"split '{item['split']}' from {item['list']}: {counts}; ids {item['id_hash']}", soft_wrap=True)
    for reason, count in chosen.about()["left_out"].items():
        first = islice((item.clip_id for item in chosen.left_out if item.reason == reason), _SHOWN_LEFT_OUT)
        examples = _printable(", ".join(first))
        more = ", ..." if count > _SHOWN_LEFT_OUT else ""
        console.print(f"left out, {reason}: {count:,} ({LEFT_OUT[reason]}): {examples}{more}", soft_wrap=True)
    for split, tests in chosen.leaks.items():
        for test, said in tests.items():
            if said["by_source"]:
                console.print(
                    f"leak: split '{split}' holds {said['by_id']:,} of the {said['of']:,} clips of {test}; "
                    f"{said['by_source']:,} are from recordings that it holds",
                    soft_wrap=True,
                )
    for split, said in chosen.truth.items():
        if said["without"]:
            console.print(f"truth: {said['without']:,} of {said['clips']:,} clips of split '{split}' have none")
        if said["boxes_outside"] or said["boxes_without_area"]:
            console.print(
                f"truth: of {said['boxes']:,} boxes of split '{split}', {said['boxes_outside']} leave the picture and "
                f"{said['boxes_without_area']} have no area, leaving {said['clips_with_empty_truth']} clips without "
                "any; all are kept as published",
                soft_wrap=True,
            )


def _judge(packed: Packed, options: argparse.Namespace, console: Console) -> int:
    """Show what was refused; the exit code."""
    if not packed.refused:
        return 0
    table = Table("reason", "clips", "meaning", title=f"{len(packed.refused)} clips refused")
    for reason, count in Counter(row[3] for row in packed.refused).most_common():
        table.add_row(reason, str(count), REASONS.get(reason, ""))
    console.print(table)
    tests = [row for row in packed.refused if is_test_split(row[1])]
    for clip_id, split, _, reason, detail in (tests or packed.refused)[:_SHOWN_REFUSALS]:
        console.print(escape(f"  {split} {clip_id}: {reason}: {detail}"), soft_wrap=True)
    if not packed.shards_left:
        console.print(f"all of them, with reasons: {options.store / REFUSED}", soft_wrap=True)
    failed = []
    share = len(packed.refused) / packed.expected
    if share > options.max_refused:
        failed.append(f"{share:.1%} of the clips were refused, more than --max-refused {options.max_refused:g}")
    if tests:
        failed.append(f"{len(tests)} clips of a test split are missing; scores on it are not comparable with others")
    if options.strict:
        failed.append(f"{len(packed.refused)} clips were refused (--strict)")
    for text in failed:
        print(f"failed: {text}. The store is whole and can be used", file=sys.stderr)
    return 1 if failed else 0
