"""Score a checkpoint: `python evaluate.py CHECKPOINT [key=value ...] [--out DIR] [--store PATH] [--overwrite]`.

CHECKPOINT is a file, or a run folder for its newest. Its config rides along; `key=value` changes it, for example
`evaluate.metrics.ciou_adaptive={}` or `evaluate.sets={vggss_test: {expected: 5158}}`. Writes into DIR (by default
beside the checkpoints): `report.html`, `scores.json`, `rows_<set>.npz` (a row a clip) and `overlays/<set>/<clip>.jpg`.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from configs.errors import UserError, run_command
from configs.load import as_mapping, as_yaml, check, merge, parse_override
from configs.run_record import hardware, versions
from configs.schema import RunConfig
from model.allocator import keep_freed_memory
from model.base import LocalizationModel
from model.build import build_model
from model.checkpoint import Checkpoint, find_checkpoint, load_checkpoint, restore_model
from model.report import Gallery, safe_name, write_report
from model.scoring import ScoreTable, build_scorer, save_rows
from pipeline.loader import build_loader
from pipeline.store import Store, id_hash

_SOURCE = re.compile(r"(.{11})_\d+")


class ScoringStopped(Exception):
    """Scoring ended early because it was asked to."""


def evaluate_sets(
    model: LocalizationModel,
    config: RunConfig,
    device: torch.device,
    *,
    blind: bool = True,
    galleries: dict[str, Gallery] | None = None,
    progress: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, ScoreTable]:
    """Score `model` on every set of `config.evaluate.sets`; a table each.

    The model comes back in the modes it had. blind: score the floors and the ceiling too, which take most of the time
    and never change. galleries: filled with the best, worst and random clips of each set.
    stop: asked before every batch. Raises: UserError if a split is missing, or has clips without truth; ScoringStopped.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    tables: dict[str, ScoreTable] = {}
    try:
        for name, options in config.evaluate.sets.items():
            scorer = build_scorer(config.evaluate, blind=blind)
            gallery = Gallery(config.evaluate.gallery) if galleries is not None else None
            loader = build_loader(
                config.data,
                model.inputs,
                name,
                train=False,
                seed=config.seed,
                device=device,
                size_px=options.size_px or config.data.image.size_px,
                batch_size=config.evaluate.batch_size,
            )
            try:
                for batch in track(loader, f"scoring {name}", total=len(loader), disable=not progress, transient=True):
                    if stop():
                        raise ScoringStopped
                    with torch.inference_mode(), autocast(config, device):
                        found = model.localize(batch)
                    scored = scorer.add(batch.clip_id, batch.valid, found, batch.truth)
                    if gallery is not None:
                        gallery.add(batch.image, scored)
            finally:
                loader.close()
            tables[name] = scorer.result(id_hash=id_hash, expected=options.expected)
            if galleries is not None and gallery is not None:
                galleries[name] = gallery
    finally:
        for module, training in modes.items():
            module.training = training
    return tables


def autocast(config: RunConfig, device: torch.device) -> torch.autocast:
    """The precision that the config asks for, in training and scoring alike."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bf16")


def choose_device(config: RunConfig) -> torch.device:
    """The device that the config asks for. Raises: UserError if this machine lacks it."""
    wanted = config.train.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("train.device=cuda, but torch finds no GPU here; use train.device=cpu or auto")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def trained_on(clip_ids: Collection[str], train_ids: Collection[str]) -> tuple[int, int]:
    """How many clips are in a training list themselves, and how many come from a video of that list.

    Ids like `<11 characters>_<number>` name their video by the first part; other ids stand for themselves.
    """

    def source(clip_id: str) -> str:
        match = _SOURCE.fullmatch(clip_id)
        return match[1] if match else clip_id

    listed, sources = set(train_ids), {source(clip_id) for clip_id in train_ids}
    return sum(name in listed for name in clip_ids), sum(source(name) in sources for name in clip_ids)


def complete(table: ScoreTable, split: str, store: Store, config: RunConfig, checkpoint: Checkpoint) -> ScoreTable:
    """The table with what the store knows: the size of the full set, and whether its clips were trained on."""
    expected = table.expected or store.manifest["splits"][split].get("expected")
    train = config.data.train_split
    notes, warnings = list(table.notes), list(table.warnings)
    if expected is not None and table.found < expected:
        warnings.append(f"{expected - table.found} clips of the full set are missing: compare with care.")
    if train not in store.splits:
        warnings.append(f"The store has no split '{train}': not known whether these clips were trained on.")
        return replace(table, expected=expected, notes=notes, warnings=warnings)
    train_ids = [store.index["clip_id"][number] for number in store.select(train)]
    same, related = trained_on([str(name) for name in table.rows["clip_id"]], train_ids)
    (warnings if related else notes).append(
        f"{same} of {table.found} clips are in the training list; {related} come from a video of that list."
    )
    recorded, here = checkpoint.record.get("train_id_hash"), id_hash(train_ids)
    if recorded != here:
        warnings.append(
            f"Split '{train}' of this store (ids {here}) is not the list that the checkpoint was trained on (ids "
            f"{recorded}): the counts are of this store's list."
        )
    return replace(table, expected=expected, notes=notes, warnings=warnings)


def print_table(console: Console, name: str, table: ScoreTable) -> None:
    """The scores of one set beside what a map scores that saw nothing."""
    expected = f" of {table.expected}" if table.expected else ""
    shown = Table(
        title=f"{name}: {table.found}{expected} clips, protocol {table.protocol}",
        caption=f"ids {table.id_hash}; " + "; ".join(f"{key}: {value}" for key, value in table.settings.items()),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    shown.add_column("score", no_wrap=True)
    for heading in ("value", "95% interval", *table.floors, "ceiling"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for score, value in table.scores.items():
        low, high = table.intervals.get(score, (None, None))
        shown.add_row(
            score,
            f"{value:.4f}",
            f"{low:.3f}-{high:.3f}" if low is not None else "",
            *(f"{floor[score]:.4f}" for floor in table.floors.values()),
            f"{table.ceiling[score]:.4f}" if score in table.ceiling else "",
        )
    console.print(shown)
    for note in table.notes:
        console.print(note)
    for warning in table.warnings:
        console.print(f"warning: {warning}", style="yellow")


def write_results(
    out: Path, tables: dict[str, ScoreTable], galleries: dict[str, Gallery], config: RunConfig, checkpoint: Checkpoint
) -> None:
    """Write rows, scores, overlay pictures and the report into `out`."""
    facts = {
        "step": str(checkpoint.step),
        "checkpoint chosen by": str(checkpoint.record.get("selection", "not recorded")),
        "trained at commit": str(checkpoint.record.get("commit")),
        "hardware": ", ".join(f"{key} {value}" for key, value in hardware().items() if value),
        "versions": ", ".join(f"{key} {value}" for key, value in versions().items()),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, table in tables.items():
            save_rows(out / f"rows_{safe_name(name)}.npz", table.rows)
            galleries[name].write(out / "overlays" / safe_name(name))
        scores = {
            "step": checkpoint.step,
            "sets": {name: table.as_mapping() for name, table in tables.items()},
            "facts": facts,
            "config": as_mapping(config),
        }
        (out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
        write_report(
            out / "report.html",
            title=f"{config.model.name}, step {checkpoint.step}",
            tables=tables,
            galleries=galleries,
            facts=facts,
            config_yaml=as_yaml(config),
            history=checkpoint.history,
        )
    except OSError as error:
        raise UserError(f"cannot write the results to {out}: {error.strerror or error}") from error


def configure(checkpoint: Checkpoint, where: Path, overrides: Sequence[str], store: Path | None) -> RunConfig:
    """The config of a checkpoint with what the command line changes. Raises: UserError."""
    mapping = as_mapping(checkpoint.config)
    for text in overrides:
        mapping = merge(mapping, parse_override(text))
    if store is not None:
        mapping = merge(mapping, {"data": {"store": str(store)}})
    config = check(RunConfig, mapping, f"the config of {where} with the command line")
    if not config.evaluate.sets:
        raise UserError("evaluate.sets is empty: name the splits to score, for example evaluate.sets={test: {}}")
    if config.data.store is None:
        raise UserError("the checkpoint names no store (data.store): say where the clips are with --store PATH")
    return config


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("evaluate.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--overwrite", action="store_true", help="replace the results in DIR")
    return parser.parse_intermixed_args(argv)


def main(argv: list[str]) -> int:
    arguments = parse(argv)
    path = find_checkpoint(arguments.checkpoint)
    checkpoint = load_checkpoint(path)
    config = configure(checkpoint, path, arguments.overrides, arguments.store)
    out = (
        arguments.out
        or (path.parent.parent if path.parent.name == "checkpoints" else path.parent) / f"eval-{path.stem}"
    )
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not arguments.overwrite:
        raise UserError(
            f"{out} is not empty; name another folder with --out, or add --overwrite to replace the results"
        )
    device = choose_device(config)
    if device.type == "cpu":
        keep_freed_memory()
    if config.train.cpu_threads:
        torch.set_num_threads(config.train.cpu_threads)

    model = build_model(config.model)
    restore_model(model, checkpoint.model, str(path))
    model.to(device)
    if config.train.channels_last:  # as in training, so that its scores are met to the last digit
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    galleries: dict[str, Gallery] = {}
    tables = evaluate_sets(model, config, device, galleries=galleries, progress=True)
    assert config.data.store is not None
    with Store(config.data.store) as store:
        tables = {name: complete(table, name, store, config, checkpoint) for name, table in tables.items()}

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)  # a log file has no width of its own
    for name, table in tables.items():
        print_table(console, name, table)
    write_results(out, tables, galleries, config, checkpoint)
    console.print(f"checkpoint: {path}, chosen by: {checkpoint.record.get('selection', 'not recorded')}")
    console.print(f"report: {out / 'report.html'}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    run_command(main)
