"""From YAML files and dotted overrides to a checked, frozen `RunConfig`.

Order of force: class defaults, the files named by `extends` (one level, in order), the file, the command line.
Scalars are read as text and become numbers, booleans or text by the type of their field, so `1e-4`, `no` and `012`
mean what their field says; only a bare `null` (or `~`) is special.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from configs.errors import UserError
from configs.resolve import check_name, nearest
from configs.schema import Config, FrontendConfig, RunConfig

CONFIG_FOLDER = Path(__file__).parent
M = TypeVar("M", bound=Config)


class _TextLoader(yaml.SafeLoader):
    """SafeLoader whose scalars stay text, but for null."""


_TextLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text with all scalars but null as str. Raises: UserError naming `where` and the line."""
    try:
        return yaml.load(text, _TextLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping. Raises: UserError if it is missing or something else."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file: {error}") from error
    value = parse_yaml(text, str(path))
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a mapping at its top level, found {type(value).__name__}")
    return value


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`; mappings merge key by key, and a part that changes its name starts afresh."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        renamed = both and "name" in value and "name" in old and value["name"] != old["name"]  # type: ignore[index]
        merged[key] = merge(old, value) if both and not renamed else value  # type: ignore[arg-type]
    return merged


def parse_override(text: str) -> dict[str, Any]:
    """`a.b.c=value` as a nested mapping; the value is YAML. Raises: UserError if there is no `=`."""
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"'{text}' is not an override; write key=value, for example optim.lr=1e-4")
    nested: Any = parse_yaml(value, f"the value of {path}")
    for key in reversed(keys):
        nested = {key: nested}
    return nested


def find_config(name: str) -> Path:
    """The file of a config given by path or by the name of a preset in `configs/`."""
    path = Path(name)
    if path.is_file():
        return path
    preset = CONFIG_FOLDER / (name if name.endswith(".yaml") else f"{name}.yaml")
    if preset.is_file():
        return preset
    known = sorted(file.stem for file in CONFIG_FOLDER.glob("*.yaml"))
    raise UserError(f"no config '{name}': neither a file nor one of {', '.join(known)}.{nearest(path.stem, known)}")


def load_mapping(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The merged mapping of a config file, what it extends and the overrides, not yet checked."""
    own = read_yaml(path)
    parents = own.pop("extends", None) or []
    if isinstance(parents, str):
        parents = [parents]
    merged: dict[str, Any] = {}
    for parent in parents:
        beside = path.parent / parent
        mapping = read_yaml(beside if beside.is_file() else CONFIG_FOLDER / parent)
        if "extends" in mapping:
            raise UserError(f"{parent}, which {path} extends, extends another file itself; only one level is allowed")
        merged = merge(merged, mapping)
    merged = merge(merged, own)
    for text in overrides:
        merged = merge(merged, parse_override(text))
    return merged


def check(model: type[M], mapping: Any, where: str) -> M:
    """`mapping` as a checked `model`. Raises: UserError with one line a problem, each naming its key and value."""
    try:
        return model.model_validate(mapping)
    except ValidationError as error:
        problems = _problems(error, ())
        raise UserError("\n  ".join([f"{where}: {len(problems)} problem(s) in the configuration", *problems])) from None


def _problems(error: ValidationError, prefix: tuple[Any, ...]) -> list[str]:
    lines: list[str] = []
    for item in error.errors():
        place = prefix + item["loc"]
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, ValidationError):
            lines += _problems(cause, place)
            continue
        message = item["msg"].removeprefix("Value error, ")
        found = item.get("input")
        shown = f" (found {found!r})" if isinstance(found, str | int | float | bool | None | list) else ""
        if item["type"] == "missing":
            shown = ""
        lines.append(f"{'.'.join(str(key) for key in place) or 'top level'}: {message}{shown}")
    return lines


def load_config(argv: Sequence[str]) -> RunConfig:
    """The config of a command line `CONFIG [key=value ...]`. Raises: UserError."""
    if not argv:
        raise UserError("name a config: a YAML file or a preset of configs/, then key=value overrides if any")
    path = find_config(argv[0])
    mapping = load_mapping(path, argv[1:])
    mapping.setdefault("out", None)
    config = check(RunConfig, mapping, str(path))
    if config.out is None:
        config = config.model_copy(update={"out": Path("runs") / f"{path.stem}-s{config.seed}"})
    return config


def frontend_names() -> list[str]:
    """Names of the front-ends in `configs/frontends`, sorted."""
    return sorted(file.stem for file in (CONFIG_FOLDER / "frontends").glob("*.yaml"))


def load_frontend(name: str) -> FrontendConfig:
    """The front-end of a file in `configs/frontends`, or of a path to such a file. Raises: UserError."""
    path = Path(name) if name.endswith(".yaml") else CONFIG_FOLDER / "frontends" / f"{name}.yaml"
    if not path.is_file():
        check_name("front-end", name, frontend_names())
    return check(FrontendConfig, {"name": path.stem, **read_yaml(path)}, str(path))


def as_mapping(config: Config) -> dict[str, Any]:
    """A config as plain values (text, numbers, lists, mappings); `check` reads it back to an equal config."""
    return config.model_dump(mode="json")


def as_yaml(config: Config) -> str:
    """A config as YAML text; `load_mapping` and `check` read it back to an equal config."""
    return yaml.safe_dump(as_mapping(config), sort_keys=False, allow_unicode=True)


def refuse_other_config(config: RunConfig, old: RunConfig, *, free: Sequence[str], where: Path) -> None:
    """Raises: UserError naming what differs between two configs, but for the keys in `free` and what is below them."""
    differing = [
        f"{key}: {was!r} in the checkpoint, {now!r} now"
        for key, (was, now) in _pairs(as_mapping(old), as_mapping(config), "").items()
        if was != now and not any(key == name or key.startswith(f"{name}.") for name in free)
    ]
    was, now = list(old.data.augment), list(config.data.augment)
    if was != now and set(was) == set(now):  # they are applied in this order
        differing.append(f"data.augment: in the order {', '.join(was)} in the checkpoint, {', '.join(now)} now")
    if differing:
        raise UserError(
            "\n  ".join([f"{where} was trained with another config and cannot go on with this one:", *differing])
        )


def _pairs(old: Any, new: Any, prefix: str) -> dict[str, tuple[Any, Any]]:
    """Two nested mappings side by side: dotted key -> the two values; None where one lacks the key."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return {prefix: (old, new)}
    pairs: dict[str, tuple[Any, Any]] = {}
    for key in dict.fromkeys([*old, *new]):
        pairs |= _pairs(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else str(key))
    return pairs
