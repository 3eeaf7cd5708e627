"""The test sets of the field: `configs/sets/<name>.yaml` says which clips of a store a set is made of."""

from pathlib import Path
from typing import Any

from configs.load import read_yaml

SETS_FOLDER = Path(__file__).parent / "sets"


def set_names() -> list[str]:
    """Names of the known test sets, sorted."""
    return sorted(path.stem for path in SETS_FOLDER.glob("*.yaml"))


def set_options(name: str, given: Any) -> Any:
    """The options of a set: what was given, over what its file says if it is a known one."""
    path = SETS_FOLDER / f"{name}.yaml"
    if given is not None and not isinstance(given, dict):
        return given
    return {"splits": [name], **(read_yaml(path) if name in set_names() else {}), **(given or {})}
