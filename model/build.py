"""From configs to modules, from authors' checkpoints to ours and back, and to ONNX: `python -m model.build --help`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from configs.errors import UserError, run_command
from configs.load import load_config
from configs.resolve import resolve
from configs.schema import Config
from model.base import LocalizationModel
from model.checkpoint import (
    Checkpoint,
    capture_rng,
    list_checkpoints,
    load_checkpoint,
    restore_model,
    save_checkpoint,
    write_atomically,
)
from model.objective import Objective
from model.onnx_export import export_onnx
from model.published import as_published, load_published, read_published, sha256


def build_model(config: Any) -> LocalizationModel:
    """The method that `config` (RunConfig.model) names, freshly initialised."""
    return resolve("model.methods", config.name)(config)


def without_initial_weights(config: Any) -> Any:
    """The config of a method (RunConfig.model) whose parts load no weights when built: a checkpoint gives them all.

    Every `weights` option below it becomes "none", so that the files and downloads that training began with need not
    be at hand.
    """
    changed: dict[str, Any] = {}
    for key in type(config).model_fields:
        value = getattr(config, key)
        if key == "weights" and isinstance(value, str):
            changed[key] = "none"
        elif isinstance(value, Config):
            changed[key] = without_initial_weights(value)
        elif isinstance(value, dict):
            changed[key] = {
                name: without_initial_weights(part) if isinstance(part, Config) else part
                for name, part in value.items()
            }
    return config.model_copy(update=changed)


def restored_model(config: Any, checkpoint: Checkpoint, where: Path) -> LocalizationModel:
    """The method that `config` (RunConfig.model) names with the weights of a checkpoint. where: for messages.

    Raises: UserError as `restore_model`.
    """
    model = build_model(without_initial_weights(config))
    restore_model(model, checkpoint.model, str(where))
    return model


def build_objective(config: Any) -> Objective:
    """The method with the losses of its config. Raises: UserError if there are none, or one that does not fit."""
    if not config.losses:
        raise UserError(f"model.losses is empty: nothing to train method '{config.name}' with")
    losses = {name: resolve("model.losses", name)(options) for name, options in config.losses.items()}
    return Objective(build_model(config), losses)


def import_published(
    method: str, source: Path, out: Path, *, config: str | None, overrides: Sequence[str], drop: Sequence[str]
) -> None:
    """Write the weights of an authors' file into the run folder `out`, as a checkpoint that `evaluate.py` takes.

    config: a preset or file; None: `<method>_vggsound144k`. drop: as in `load_published`. What their files need not
    have, as heads that no map needs, starts as in a training with seed 0.
    Raises: UserError if the file does not fit, or `out` holds checkpoints already.
    """
    run = load_config([config or f"{method}_vggsound144k", *overrides, f"out={out}"])
    if run.model.name != method:
        raise UserError(f"the config is of method '{run.model.name}', not '{method}'; name another with --config")
    if list_checkpoints(out / "checkpoints"):
        raise UserError(f"{out} holds checkpoints already; name another folder")
    torch.manual_seed(0)
    model = build_model(without_initial_weights(run.model))
    dropped = load_published(model, read_published(source), drop=drop, where=str(source))
    record = {
        "selection": "as the authors of the file chose it",
        "imported_from": source.name,
        "imported_sha256": sha256(source),
        "imported_without": dropped,
        "finished": True,
    }
    checkpoint = Checkpoint(
        config=run, model=model.state_dict(), optimizer={}, step=0, loader={}, rng=capture_rng(), record=record,
        history=[],
    )  # fmt: skip
    path = save_checkpoint(out / "checkpoints", checkpoint, keep=1)
    print(f"wrote {path}: {len(checkpoint.model)} entries")
    if dropped:
        print(f"left out {len(dropped)} that nothing uses: {', '.join(dropped)}")
    print(f"score it with: python evaluate.py {out} --store STORE")


def export_published(method: str, source: Path, out: Path) -> None:
    """Write the weights of a checkpoint or run folder as a state dict in the names of the method's authors.

    Entries of theirs that nothing uses, and that the import dropped, are not in it.
    Raises: UserError if the checkpoint is of another method, or `out` exists.
    """
    checkpoint = load_checkpoint(source)
    if checkpoint.config.model.name != method:
        raise UserError(f"{source} is a checkpoint of method '{checkpoint.config.model.name}', not '{method}'")
    if out.exists():
        raise UserError(f"{out} exists already; name another file")
    model = restored_model(checkpoint.config.model, checkpoint, source)
    state = as_published(model)
    write_atomically(out, lambda file: torch.save(state, file))
    print(f"wrote {out}: {len(state)} entries")


def export_checkpoint(source: Path, out: Path) -> None:
    """Write a checkpoint or the newest of a run folder as an ONNX file. Raises: UserError as `export_onnx`."""
    checkpoint = load_checkpoint(source)
    model = restored_model(checkpoint.config.model, checkpoint, source)
    difference = export_onnx(model, checkpoint, out)
    print(f"wrote {out}: {out.stat().st_size / 2**20:.0f} MiB; maps of noise within {difference:.1g} of torch's")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m model.build", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    importing = commands.add_parser("import", help="an authors' checkpoint into a run folder of ours")
    importing.add_argument("--config", help="preset or YAML file; default METHOD_vggsound144k")
    importing.add_argument("--drop", nargs="+", default=[], metavar="NAME", help="beginnings of names to leave out")
    exporting = commands.add_parser("export", help="a checkpoint of ours into a state dict in the authors' names")
    to_onnx = commands.add_parser("export-onnx", help="a checkpoint or run folder of ours, front-end included, as ONNX")
    for command, result in ((importing, "run folder"), (exporting, "file"), (to_onnx, "file")):
        if command is not to_onnx:
            command.add_argument("method")
        command.add_argument("source", type=Path, metavar="IN")
        command.add_argument("out", type=Path, metavar="OUT", help=result)
    importing.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args(argv)
    if arguments.command == "export-onnx":
        export_checkpoint(arguments.source, arguments.out)
    elif arguments.command == "export":
        export_published(arguments.method, arguments.source, arguments.out)
    else:
        import_published(
            arguments.method,
            arguments.source,
            arguments.out,
            config=arguments.config,
            overrides=arguments.overrides,
            drop=arguments.drop,
        )


if __name__ == "__main__":
    run_command(main)
