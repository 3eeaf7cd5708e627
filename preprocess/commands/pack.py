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
from configs.resolve import resolve
from pipeline.store import Store
from preprocess.arguments import ENGINES, EXIT_CODES, LAYOUTS, add_options, help_of, own_options, parsed
from preprocess.layout import LEFT_OUT, Layout, SourceClip
from preprocess.manifest_file import REFUSED
from preprocess.options import PackConfig
from preprocess.progress import PackProgress
from preprocess.recognise import recognise
from preprocess.refusals import REASONS
from preprocess.report import HTML, write_report
from preprocess.selection import Selection, is_test_split, select, write_left_out
from preprocess.task import Engine
from preprocess.writer import Packed, Stopped, default_shard_clips, pack

_SHOWN_REFUSALS = 10
_SHOWN_LEFT_OUT = 4


def add(commands: Any) -> None:
    """Add this command to the parser."""
    command = commands.add_parser(
        "pack",
        help="pack the clips of INPUT into STORE; the same command again goes on where it stopped",
        usage="%(prog)s LAYOUT INPUT STORE [options]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # a layout's own option may begin like one of these
        epilog="\n\n".join([EXIT_CODES, help_of(LAYOUTS), help_of(ENGINES)]),
    )
    command.set_defaults(run=_pack, options_of_its_own=True)
    command.add_argument("layout", metavar="LAYOUT", help="how INPUT is kept: one of those below, or 'auto'")
    command.add_argument("input", metavar="INPUT", type=Path, help="folder of the data set, or a file as LAYOUT says")
    command.add_argument(
        "store", metavar="STORE", type=Path, help="folder to write; new, empty, or of the same command"
    )
    add_options(command)


def _engine(options: argparse.Namespace, rest: list[str]) -> tuple[Engine, list[str]]:
    """The engine, and the options that are not its own. Raises: UserError."""
    engine = resolve(ENGINES, options.engine)
    given, others = parsed(ENGINES, options.engine, rest)
    workers = {} if options.workers is None else {"workers": options.workers}
    what = f"--engine {options.engine}: --workers or its own options"
    return engine(check(engine.Config, {**workers, **given, "name": options.engine}, what)), others


def _layout(name: str, source: Path, rest: list[str]) -> Layout:
    """The layout with its own options, which are the fields of its `Config`. Raises: UserError."""
    layout = resolve(LAYOUTS, name)
    given, unknown = parsed(LAYOUTS, name, rest)
    if unknown:
        known = own_options(LAYOUTS, name).values()
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
    clips.clear()  # of 144k clips they take a third of this process, and the report needs the memory
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
    return _judge(packed, chosen, options, console)


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


def _judge(packed: Packed, chosen: Selection, options: argparse.Namespace, console: Console) -> int:
    """Show what was refused and what is missing of test splits; the exit code."""
    tests = [row for row in packed.refused if is_test_split(row[1])]
    if packed.refused:
        table = Table("reason", "clips", "meaning", title=f"{len(packed.refused)} clips refused")
        for reason, count in Counter(row[3] for row in packed.refused).most_common():
            table.add_row(reason, str(count), REASONS.get(reason, ""))
        console.print(table)
        for clip_id, split, _, reason, detail in (tests or packed.refused)[:_SHOWN_REFUSALS]:
            console.print(escape(f"  {split} {clip_id}: {reason}: {detail}"), soft_wrap=True)
        if not packed.shards_left:
            console.print(f"all of them, with reasons: {options.store / REFUSED}", soft_wrap=True)
    failed = []
    if packed.refused and len(packed.refused) / packed.expected > options.max_refused:
        share = len(packed.refused) / packed.expected
        failed.append(f"{share:.1%} of the clips were refused, more than --max-refused {options.max_refused:g}")
    if tests:
        failed.append(f"{len(tests)} clips of a test split were refused; scores on it are not comparable with others")
    for item in () if packed.shards_left else chosen.lists:
        if item["missing"] and is_test_split(item["split"]):
            failed.append(
                f"{item['missing']:,} of {item['expected']:,} clips of test split '{item['split']}' ({item['list']}) "
                f"are missing in {options.input}; scores on it are not comparable with others"
            )
    missing = sum(item["missing"] for item in chosen.lists)
    if options.strict and (packed.refused or missing):
        failed.append(f"{len(packed.refused)} clips were refused and {missing:,} are missing (--strict)")
    whole = "Other shares go on" if packed.shards_left else "The store is whole and can be used"
    for text in failed:
        print(f"failed: {text}. {whole}", file=sys.stderr)
    return 1 if failed else 0
