"""The rules of the layout, read off the sources."""

import ast
from pathlib import Path

import pytest

from configs.resolve import names

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "configs": {"configs"},
    "pipeline": {"configs", "pipeline"},
    "preprocess": {"configs", "pipeline", "preprocess"},
    "model": {"configs", "pipeline", "model"},
    "train.py": {"configs", "pipeline", "model", "evaluate"},
    "evaluate.py": {"configs", "pipeline", "model"},
}
WITHIN_PIPELINE = {
    "preprocess": {"pipeline.record", "pipeline.store", "pipeline.frontends"},
    "model": {"pipeline.batch", "pipeline.frontends", "pipeline.outline"},
}
OURS = {"configs", "pipeline", "preprocess", "model", "train", "evaluate", "benchmarks", "examples", "tests"}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.add(node.module or "")
    return {name for name in found if name.split(".")[0] in OURS}


def sources(part: str) -> list[Path]:
    path = ROOT / part
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_go_one_way(part: str):
    for path in sources(part):
        for name in imports(path):
            assert name.split(".")[0] in ALLOWED[part], f"{path} must not import {name}"
            if part in WITHIN_PIPELINE and name.startswith("pipeline"):
                assert name in WITHIN_PIPELINE[part], f"{path} must not import {name}"


def test_methods_do_not_import_each_other():
    for path in sources("model/methods"):
        assert not any(name.startswith("model.methods") for name in imports(path)), path


def test_the_loop_is_short_and_names_nothing():
    for script in ("train.py", "evaluate.py"):
        text = (ROOT / script).read_text()
        for package in ("model.methods", "model.losses", "model.metrics", "model.protocols", "preprocess.layouts"):
            for name in names(package):
                words = {"clips", "manifest"}  # ordinary words that are also names of layouts
                named = f'"{name}"' in text or f" {name} " in text
                assert name in words or not named, f"{script} names {name}"
    assert len((ROOT / "train.py").read_text().splitlines()) < 300


def test_no_package_has_an_init_with_code():
    for part in ("configs", "pipeline", "preprocess", "model", "benchmarks"):
        for path in (ROOT / part).rglob("__init__.py"):
            assert not path.read_text().strip(), path
