"""The structure of the code: which room imports which, that no imports form a circle, and what an import costs."""

import ast
import subprocess
import sys
import tomllib
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DATA = {"media", "signals", "pairs", "scenes"}
ROOMS = {  # the rooms in order, and which others each may import besides `types`, `errors` and `files`
    "media": set(),
    "signals": {"media"},
    "pairs": {"media", "signals"},
    "scenes": {"media", "signals", "pairs"},
    "model": set(),
    "weights": {"model"},
    "inference": {"media", "signals", "model", "weights"},
    "evaluation": DATA | {"model", "weights", "inference"},
    "training": DATA | {"model", "weights", "inference", "evaluation"},
    "demo": DATA | {"model", "weights", "inference", "evaluation"},
    "bench": DATA | {"model", "weights", "inference", "evaluation", "training", "demo"},
    "baselines": {"media", "signals", "model", "weights", "evaluation"},
    "cli": DATA | {"model", "weights", "inference", "evaluation", "training", "demo", "bench", "baselines"},
    # the packages beside fp_lightning, which recipes join with it by class_path
    "datamodules": DATA,
    "callbacks": {"media", "evaluation", "training"},
}
SHARED = {"types", "errors", "files"}
ENTRIES = {"__init__", "__main__"}  # at the top, import what they start
FILES = sorted(p for d in ("fp_lightning", "callbacks", "datamodules") for p in (ROOT / d).rglob("*.py"))
LONGEST = 350  # lines of a file


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


@cache
def imports(path: Path) -> frozenset[str]:
    """The project's modules that a file imports anywhere: at its top, inside functions and for type checkers."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} line {node.lineno}: imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return frozenset(found & MODULES.keys())


def room(module: str) -> str:
    """`fp_lightning.pairs.flow.dis` is in "pairs", `fp_lightning.types` is "types", `callbacks.ema` in "callbacks"."""
    parts = module.split(".")
    if parts[0] != "fp_lightning":
        return parts[0]
    return parts[1] if len(parts) > 1 else "__init__"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    own = room(module_name(path))
    others = {room(name) for name in imports(path)} - {own}
    if own in ENTRIES | {"assets"}:
        return
    if own in SHARED:
        assert others <= SHARED
    else:
        assert others <= ROOMS[own] | SHARED


def test_the_table_has_every_room_once_and_names_only_earlier_ones():
    at_the_top = {
        p.stem if p.is_file() else p.name for p in (ROOT / "fp_lightning").iterdir() if "__pycache__" not in p.name
    }
    assert at_the_top == set(ROOMS) - {"datamodules", "callbacks"} | SHARED | ENTRIES | {"assets"}
    names = list(ROOMS)
    for index, (name, others) in enumerate(ROOMS.items()):
        assert others <= set(names[:index]), f"{name} may import {others - set(names[:index])}, which come later"


def test_no_circle_of_modules():
    graph = {name: imports(path) - {name} for name, path in MODULES.items() if room(name) not in ENTRIES}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_the_wheel_has_every_package():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in FILES if path.name == "__init__.py"}
    assert found | {"recipes"} == set(packages)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_has_one_idea(path):
    """As far as a length can tell."""
    assert len(path.read_text().splitlines()) <= LONGEST


def test_no_markup_in_python():
    """Pages are templates beside the code."""
    with_markup = [str(path) for path in FILES if "<div" in path.read_text()]
    assert with_markup == []


@pytest.mark.parametrize("statement", ["import fp_lightning", "import fp_lightning.cli.main"])
def test_importing_brings_no_heavy_package(statement):
    heavy = ("torch", "diffusers", "lightning", "cv2", "av")
    code = f"{statement}; import sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
