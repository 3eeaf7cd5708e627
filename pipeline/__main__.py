"""python -m pipeline show STORE ...: what a model sees of a store's clips."""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from configs.errors import run_command
from configs.load import load_config
from pipeline.show import check_name, collect, write_sheet


def main(argv: list[str]) -> None:
    """Run one command; see `python -m pipeline --help`."""
    parser = argparse.ArgumentParser("python -m pipeline", description="Look at what the pipeline makes of a store.")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser(
        "show",
        help="draw a sheet of what a model sees: the first thing to look at when a run does not learn",
        description="Draw clips of a store as they are stored, as a test gives them to the model and as the first "
        "epochs of a training do, after augmentation: pictures, windows of sound, and flow, further views and "
        "neighbours where the method asks for them. Another split than the one to train on comes with its truth.",
    )
    show.add_argument("store", metavar="STORE", type=Path)
    show.add_argument(
        "--config",
        default="ez_vsl_vggsound144k",
        metavar="PRESET_OR_YAML",
        help="its method and data section say what is shown (default: %(default)s)",
    )
    show.add_argument("--out", type=Path, default=Path("sheet.png"), metavar="FILE", help="default: %(default)s")
    show.add_argument("--clips", type=_positive, default=4, metavar="N", help="chosen by seed (default: %(default)s)")
    show.add_argument("--split", help="default: the one to train on")
    show.add_argument("overrides", nargs="*", metavar="key=value", help="as in train.py; seed=1 shows other clips")
    options, rest = parser.parse_known_args(argv)  # overrides behind an option are not taken for those before it
    if unknown := [text for text in rest if text.startswith("-")]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    config = load_config([options.config, *options.overrides, *rest])
    check_name(options.out)
    data = config.data.model_copy(update={"store": options.store})
    sheet = collect(config.model_copy(update={"data": data}), options.split or data.train_split, options.clips)
    write_sheet(sheet, options.out)
    facts = Table(title=f"{options.store} as {options.config}", show_header=False)
    for name, text in sheet.facts.items():
        facts.add_row(name, text)
    numbers = Table("input", "shape", "least", "mean", "greatest", "deviation", title="Of the clips on the sheet")
    for name, row in sheet.numbers.items():
        numbers.add_row(name, *row)
    console = Console()
    console.print(facts, numbers)
    console.print(f"wrote {options.out}", soft_wrap=True)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no number from 1 on")
    return int(text)


if __name__ == "__main__":
    run_command(main)
