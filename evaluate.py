"""Score a checkpoint, compare results, or score the maps of any system.

    python evaluate.py CHECKPOINT [key=value ...] [--sets vggss,flickr|all] [--protocols NAME,NAME|all] [--store PATH]
    python evaluate.py compare RESULTS RESULTS ... [--separate] [--out DIR] [--store PATH]
    python evaluate.py maps MAPS --set NAME [--truth FILE | --store PATH] [--protocol NAME]

CHECKPOINT is a file, or a run folder for its newest. Its config rides along; `key=value` changes it, for example
`evaluate.metrics.ciou_adaptive={}`. Sets are those of `configs/sets` and any split of the store that has truth. Writes
into --out (by default beside the checkpoints): `report.html`, `scores.json`, `rows_<set>.npz` (a row a clip),
`maps_<split>.npz` (as the method gave them) and `overlays/<set>/<clip>.jpg`.
"""

import argparse
import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from configs.allocator import keep_freed_memory
from configs.errors import UserError, run_command
from configs.id_lists import LISTS_FOLDER, load_list
from configs.load import as_mapping, as_yaml, check, merge, parse_override
from configs.resolve import names, nearest
from configs.run_record import hardware, versions
from configs.schema import EvaluateConfig, EvaluateSet, ImageConfig, RunConfig
from configs.test_sets import set_names
from model.base import Localization, LocalizationModel
from model.build import restored_model
from model.checkpoint import Checkpoint, find_checkpoint, load_checkpoint, refuse_other_flow
from model.compare import compare
from model.console import make_console, print_comparison, print_result
from model.evaluation import Scores, complete, disagreement_galleries, first_scorer, leave_out_unfit, write
from model.external_maps import ExternalMaps, batches, match, negative_truth, read_truth
from model.gallery import Gallery, KeptMaps
from model.honesty import TRAIN_IDS, TrainingList, unpack_ids
from model.protocol import SetFacts
from model.report import write_comparison
from model.results import TRAINING_LIST, Results, SetResult, read_results
from model.scoring import ScoreTable, build_refinements, build_scoreboard
from pipeline.batch import Truth
from pipeline.excerpts import Excerpts
from pipeline.loader import build_loader
from pipeline.store import Store, id_hash
from pipeline.test_sets import check_sets, clips_of, clips_outside, every_set, with_expected

PROTOCOLS_HELP = "score the same maps under these too: names with commas, or all that a set allows"


class ScoringStopped(Exception):
    """Scoring ended early because it was asked to."""


def evaluate_sets(
    model: LocalizationModel,
    config: RunConfig,
    device: torch.device,
    *,
    blind: bool = True,
    stop: Callable[[], bool] = lambda: False,
    rank: int = 0,
    world_size: int = 1,
) -> dict[str, ScoreTable]:
    """The table of every set of `config.evaluate.sets` under `config.evaluate.protocol`; the same on every rank.

    The arguments are those of `score_sets`. Raises: as it does.
    """
    scored = score_sets(model, config, device, blind=blind, stop=stop, rank=rank, world_size=world_size)
    return {name: scores.tables(id_hash, config.evaluate.sets[name].expected)[0] for name, scores in scored.items()}


def score_sets(
    model: LocalizationModel,
    config: RunConfig,
    device: torch.device,
    *,
    protocols: Sequence[str] | None = (),
    blind: bool = True,
    keep: bool = False,
    progress: bool = False,
    stop: Callable[[], bool] = lambda: False,
    rank: int = 0,
    world_size: int = 1,
) -> dict[str, Scores]:
    """Score `model` on every set of `config.evaluate.sets`; each split passes through the model once.

    The model comes back in the modes it had. protocols: others to score the same maps under, after the chosen one;
    None: every one that the set allows.
    blind: score the floors and the ceiling too, which take most of the time and never change. keep: the maps, for
    pictures. stop: asked before every batch.
    Raises: UserError if a split is missing, or has clips without truth; ScoringStopped.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    alike: dict[str, list[str]] = {}  # sets that differ by their list of clips alone share one pass
    for name, options in config.evaluate.sets.items():
        rules = options.model_dump(mode="json", include={"splits", "size_px", "family", "metrics"})
        alike.setdefault(repr(rules), []).append(name)
    scored: dict[str, Scores] = {}
    try:
        for members in alike.values():
            options = config.evaluate.sets[members[0]]
            board = build_scoreboard(
                config.evaluate.for_set(options),
                protocols=names("model.protocols") if protocols is None else protocols,
                facts=SetFacts(family=options.family),
                blind=blind,
                refinements=build_refinements(config.evaluate, device, floor=blind),
            )
            kept = KeptMaps()
            for split in options.splits:
                loader = build_loader(
                    config.data,
                    model.inputs,
                    split,
                    train=False,
                    seed=config.seed,
                    rank=rank,
                    world_size=world_size,
                    device=device,
                    size_px=options.size_px or config.data.image.size_px,
                    batch_size=config.evaluate.batch_size,
                )
                title = f"scoring {', '.join(members)}: {split}"
                try:
                    for batch in track(loader, title, total=len(loader), disable=not progress, transient=True):
                        if stop():
                            raise ScoringStopped
                        with torch.inference_mode(), autocast(config, device):
                            found = board.localize(model.localize, batch)
                        board.add(batch, found)
                        if keep:
                            kept.add(batch.clip_id, batch.valid.tolist(), found)
                finally:
                    loader.close()
            notes = leave_out_unfit(board)
            board.gather(device)
            for name in members:
                outside = clips_outside(config.evaluate.sets[name], first_scorer(board).clip_ids, name)
                scored[name] = Scores(board=board, outside=outside, maps=kept, notes=notes)
    finally:
        for module, training in modes.items():
            module.training = training
    return {name: scored[name] for name in config.evaluate.sets}


def autocast(config: RunConfig, device: torch.device) -> torch.autocast:
    """The precision that the config asks for, in training and scoring alike; maps are scored in fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bf16")


def choose_device(config: RunConfig) -> torch.device:
    """The device that the config asks for. Raises: UserError if this machine lacks it."""
    wanted = config.train.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("train.device=cuda, but torch finds no GPU here; use train.device=cpu or auto")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def training_list(record: Mapping[str, Any], given: str | None, store: Store, split: str) -> TrainingList | None:
    """What the weights were trained on: the list that is given, else the checkpoint's own, else the store's if it is
    the same list; None if nobody knows.
    """
    if given:
        return TrainingList(load_list(given), f"the list {given}")
    if TRAIN_IDS in record:
        return TrainingList(unpack_ids(record[TRAIN_IDS]), "as the checkpoint says")
    if split in store.splits:
        clip_ids = [store.index["clip_id"][number] for number in store.select(split)]
        if id_hash(clip_ids) == record.get("train_id_hash"):
            return TrainingList(clip_ids, f"split '{split}' of this store")
    return None


def check_known(known: TrainingList | None, exclude_leaked: bool) -> None:
    """Raises: UserError if clips are to be left out and nobody knows which."""
    if exclude_leaked and known is None:
        raise UserError(
            "--exclude-leaked needs the list of clips that were trained on, and nothing here says it: name it with "
            "--trained-on LIST, for example vggsound_144k_ezvsl"
        )


def configure(checkpoint: Checkpoint, where: Path, arguments: argparse.Namespace) -> RunConfig:
    """The config of a checkpoint with what the command line changes. Raises: UserError."""
    mapping = as_mapping(checkpoint.config)
    for text in arguments.overrides:
        mapping = merge(mapping, parse_override(text))
    if arguments.store is not None:
        mapping = merge(mapping, {"data": {"store": str(arguments.store)}})
    config = check(RunConfig, mapping, f"the config of {where} with the command line")
    if config.data.store is None:
        raise UserError("the checkpoint names no store (data.store): say where the clips are with --store PATH")
    if arguments.sets:
        chosen = [name for name in arguments.sets.split(",") if name]
        if chosen == ["all"]:
            chosen = every_set(config.data.store, config.data.train_split)
        options = {name: as_mapping(each) for name, each in config.evaluate.sets.items()}
        mapping["evaluate"]["sets"] = {name: options.get(name, {}) for name in chosen}
        config = check(RunConfig, mapping, "the config with --sets")
    if not config.evaluate.sets:
        raise UserError(
            "evaluate.sets is empty: name what to score with --sets, for example --sets vggss,flickr or all"
        )
    return config


def free_folder(out: Path, overwrite: bool) -> Path:
    """`out`, if results may be written there. Raises: UserError."""
    for path in (out, *out.parents):
        if path.exists() and not path.is_dir():
            raise UserError(f"--out {out}: {path} is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise UserError(
            f"{out} is not empty; name another folder with --out, or add --overwrite to replace the results"
        )
    return out


def chosen_protocols(text: str) -> list[str] | None:
    """The names in `--protocols`; None for "all"."""
    return None if text == "all" else [name for name in text.split(",") if name]


def score_checkpoint(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("evaluate.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--sets", help="names with commas, or all: what the store has")
    parser.add_argument(
        "--protocols", default="", help="score the same maps under these too: names with commas, or all"
    )
    parser.add_argument("--trained-on", metavar="LIST", help="the training list, if the checkpoint does not carry it")
    parser.add_argument("--exclude-leaked", action="store_true", help="score the clips not trained on as well")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--overwrite", action="store_true", help="replace the results in --out")
    arguments = parser.parse_intermixed_args(argv)

    path = find_checkpoint(arguments.checkpoint)
    checkpoint = load_checkpoint(path)
    config = configure(checkpoint, path, arguments)
    check_sets(config.data.store, config.evaluate.sets)
    folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    out = free_folder(arguments.out or folder / f"eval-{path.stem}", arguments.overwrite)
    device = choose_device(config)
    if device.type == "cpu":
        keep_freed_memory()
    if config.train.cpu_threads:
        torch.set_num_threads(config.train.cpu_threads)
    model = restored_model(config.model, checkpoint, path).to(device)
    if config.train.channels_last:  # as in training, so that its scores are met to the last digit
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    with Store(config.data.store) as store:  # type: ignore[arg-type]
        known = training_list(checkpoint.record, arguments.trained_on, store, config.data.train_split)
        if "flow" in model.inputs.fields:
            refuse_other_flow(checkpoint.record, store.flow_encoding, str(path), str(store.path))
    check_known(known, arguments.exclude_leaked)

    protocols = chosen_protocols(arguments.protocols)
    scored = score_sets(model, config, device, protocols=protocols, keep=True, progress=True)
    selection = str(checkpoint.record.get("selection", "not recorded"))
    facts = {
        "checkpoint": f"step {checkpoint.step}, chosen by: {selection}",
        "trained at commit": str(checkpoint.record.get("commit")),
        **training_facts(checkpoint.record),
        "precision": f"{config.train.precision} in the model; maps are scored in fp32",
        **machine(),
    }
    console = make_console()
    with Store(config.data.store) as store:  # type: ignore[arg-type]
        sets: dict[str, SetResult] = {}
        for name, scores in scored.items():
            options = with_expected(store, config.evaluate.sets[name])
            sets |= complete(
                name, options, scores, known, id_hash, selection=selection, exclude_leaked=arguments.exclude_leaked
            )
        results = Results(
            title=f"{config.model.name}, step {checkpoint.step}", sets=sets, facts=facts, config=as_mapping(config)
        )
        for name, result in sets.items():
            print_result(console, name, result)
        write(
            out,
            results,
            scored,
            excerpt=Excerpts(store, config.data.image).of,
            config_yaml=as_yaml(config),
            gallery=config.evaluate.gallery,
            history=checkpoint.history,
            curves=folder / "curves.png",
        )
    console.print(f"checkpoint: {path}, chosen by: {selection}", soft_wrap=True)
    console.print(f"report: {out / 'report.html'}", soft_wrap=True)
    return 0


def training_facts(record: Mapping[str, Any]) -> dict[str, str]:
    """The size and the hash of the training list, where a checkpoint says them."""
    if "train_id_hash" not in record:
        return {}
    return {TRAINING_LIST: f"{record['train_clips']} clips, ids {record['train_id_hash']}"}


def machine() -> dict[str, str]:
    """Hardware and versions, for reports."""
    return {
        "hardware": ", ".join(f"{key} {value}" for key, value in hardware().items() if value),
        "versions": ", ".join(f"{key} {value}" for key, value in versions().items()),
    }


def score_maps(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("evaluate.py maps", description=ExternalMaps.__doc__)
    parser.add_argument("maps", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example evaluate.metrics.miou={}")
    parser.add_argument("--set", default="maps", help="a set of configs/sets, or any name")
    parser.add_argument("--truth", type=Path, help="boxes or masks as a JSON list or JSON lines")
    parser.add_argument("--store", type=Path, help="take truth and pictures from a store")
    parser.add_argument("--protocol")
    parser.add_argument(
        "--protocols", default="", help="score the same maps under these too: names with commas, or all"
    )
    parser.add_argument("--trained-on", metavar="LIST", help="the list that the system was trained on")
    parser.add_argument("--exclude-leaked", action="store_true", help="score the clips not trained on as well")
    parser.add_argument("--out", type=Path, help="write scores, rows and report; without it they are printed")
    parser.add_argument("--overwrite", action="store_true", help="replace the results in --out")
    arguments = parser.parse_intermixed_args(argv)

    mapping: dict[str, Any] = {"evaluate": {**as_mapping(EvaluateConfig()), "sets": {arguments.set: {}}}}
    for text in [*arguments.overrides, *([f"evaluate.protocol={arguments.protocol}"] if arguments.protocol else [])]:
        mapping = merge(mapping, parse_override(text))
    if other := [key for key in mapping if key != "evaluate"]:
        raise UserError(f"maps are scored by evaluate.<key>=value alone, found {other[0]}: remove it")
    config = check(EvaluateConfig, mapping["evaluate"], "the command line")
    if config.refine:
        raise UserError(
            f"evaluate.refine.{next(iter(config.refine))} needs a method and the pictures, and maps come without: "
            "remove it, and mix the maps before they are saved"
        )
    if arguments.set not in config.sets:
        raise UserError(f"evaluate.sets.{arguments.set}=null takes away the set that --set names")
    options = config.sets[arguments.set]
    out = free_folder(arguments.out, arguments.overwrite) if arguments.out else None
    protocols = chosen_protocols(arguments.protocols)
    known = TrainingList(load_list(arguments.trained_on), arguments.trained_on) if arguments.trained_on else None
    check_known(known, arguments.exclude_leaked)
    maps = ExternalMaps(arguments.maps)
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(Store(arguments.store)) if arguments.store else None
        excerpts = Excerpts(store, ImageConfig()) if store else None
        truths = truth_of_set(arguments.set, options, arguments.truth, store, excerpts)
        chosen, warnings = match(maps, truths)
        board = build_scoreboard(
            config.for_set(options),
            protocols=names("model.protocols") if protocols is None else protocols,
            facts=SetFacts(family=options.family),
        )
        kept = KeptMaps(maps.bounds)
        for clip_ids, values in batches(maps, chosen, config.batch_size):
            found = Localization(map=torch.from_numpy(values), bounds=maps.bounds)
            valid = torch.ones(len(clip_ids), dtype=torch.bool)
            board.add_maps(clip_ids, valid, found, [truths[clip_id] for clip_id in clip_ids])
            kept.add(clip_ids, valid.tolist(), found)
        notes = leave_out_unfit(board)
        scores = Scores(board=board, outside=set(), maps=kept, notes=notes)
        warnings += maps.out_of_bounds()
        sets = complete(
            arguments.set, options, scores, known, id_hash, warnings=warnings, exclude_leaked=arguments.exclude_leaked
        )
        facts = {"maps": str(arguments.maps), **machine()}
        results = Results(
            title=f"maps of {arguments.maps.name}", sets=sets, facts=facts, config={"evaluate": as_mapping(config)}
        )
        console = make_console()
        for name, result in sets.items():
            print_result(console, name, result)
        if out is not None:
            scored = {arguments.set: scores}
            write(
                out,
                results,
                scored,
                excerpt=excerpts.of if excerpts else None,
                config_yaml=as_yaml(config),
                gallery=config.gallery,
            )
            console.print(f"report: {out / 'report.html'}", soft_wrap=True)
    return 0


def truth_of_set(
    name: str, options: EvaluateSet, file: Path | None, store: Store | None, excerpts: Excerpts | None
) -> dict[str, Truth]:
    """Clip id -> truth of a set: from a file, a store, or what is bundled. Raises: UserError if there is none."""
    if store is not None and excerpts is not None and file is None:
        clip_ids = [store.index["clip_id"][number] for number in clips_of(store, options, name)]
        found = {clip_id: excerpts.truth(clip_id) for clip_id in clip_ids}
        return {clip_id: truth for clip_id, truth in found.items() if truth is not None}
    if file is None and options.annotations is None:
        meant = "" if name in set_names() else nearest(name, set_names())
        raise UserError(
            f"no truth of set '{name}' is bundled: name a file with --truth, or a store with --store.{meant}"
        )
    truths = {clip_id: negative_truth() for clip_id in load_list(options.negatives)} if options.negatives else {}
    truths |= read_truth(file or LISTS_FOLDER / f"{options.annotations}.json.gz")
    outside = clips_outside(options, truths, name)
    return {clip_id: truth for clip_id, truth in truths.items() if clip_id not in outside}


def compare_runs(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("evaluate.py compare", description="Paired differences between evaluations.")
    parser.add_argument("results", nargs="+", type=Path, help="folders with scores.json, or run folders")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument(
        "--separate", action="store_true", help="compare runs that differ by seed alone, instead of taking their mean"
    )
    parser.add_argument("--out", type=Path, help="write compare.md, .tex, .csv and .html")
    parser.add_argument("--store", type=Path, help="for the pictures of the largest disagreements")
    parser.add_argument("--overwrite", action="store_true", help="replace the files in --out")
    arguments = parser.parse_args(argv)
    out = free_folder(arguments.out, arguments.overwrite) if arguments.out else None
    results = [read_results(path) for path in arguments.results]
    comparison = compare(results, arguments.resamples, separate=arguments.separate)
    console = make_console()
    print_comparison(console, comparison)
    if out is not None:
        galleries: dict[str, Gallery] = {}
        if arguments.store:
            with Store(arguments.store) as store:
                excerpts = Excerpts(store, ImageConfig())
                galleries = disagreement_galleries(comparison, excerpts.of, excerpts)
        try:
            out.mkdir(parents=True, exist_ok=True)
            for style, text in comparison.files().items():
                (out / f"compare.{style}").write_text(text, encoding="utf-8")
            write_comparison(out / "compare.html", comparison, galleries)
        except OSError as error:
            raise UserError(f"cannot write the comparison to {out}: {error.strerror or error}") from error
        console.print(f"report: {out / 'compare.html'}", soft_wrap=True)
    return 0


def main(argv: list[str]) -> int:
    if (ranks := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise UserError(
            f"evaluate.py is one process, and torchrun started {ranks}: start it without. train.py scores its sets on "
            "all ranks between epochs"
        )
    commands = {"compare": compare_runs, "maps": score_maps}
    if argv and argv[0] in commands:
        return commands[argv[0]](argv[1:])
    return score_checkpoint(argv)


if __name__ == "__main__":
    run_command(main)
