"""From a name in a config to the class in the file of that name: the one extension mechanism of the project.

Every folder of extensions (`model.methods`, `model.losses`, `pipeline.augment`, ...) holds one file a name and one
class a file, recognised by its nested `Config`. There is no registry to keep up to date.
"""

import difflib
import importlib
import inspect
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from configs.errors import UserError


def names(package: str) -> list[str]:
    """All names that `resolve(package, name)` knows, sorted."""
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations, f"{package} is not a package of this project"
    files = (path for root in spec.submodule_search_locations for path in Path(root).glob("*.py"))
    return sorted(path.stem for path in files if not path.stem.startswith("_"))


def nearest(name: str, known: list[str]) -> str:
    """A hint for an unknown name: " Did you mean 'x'?" or an empty string."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def check_name(what: str, name: str, known: list[str]) -> None:
    """Raises: UserError if a name is not among those known, naming those, as in "no method 'x'; there are: ..."."""
    if name not in known:
        raise UserError(f"no {what} '{name}'; there are: {', '.join(known)}.{nearest(name, known)}")


def resolve(package: str, name: str) -> Any:
    """The class of extension `name` in `package`.

    Raises: UserError if there is no such file; the message lists the names that exist.
    """
    known = names(package)
    if name not in known:
        kind = package.rpartition(".")[2]
        raise UserError(f"no '{name}' in {kind}; there are: {', '.join(known)}.{nearest(name, known)}")
    return exported_class(importlib.import_module(f"{package}.{name}"))


def exported_class(module: ModuleType) -> Any:
    """The one class of an extension file that has a nested `Config`."""
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and value.__module__ == module.__name__ and "Config" in vars(value)
    ]
    assert len(found) == 1, f"{module.__name__} must define exactly one class with a nested Config, found {found}"
    return found[0]
