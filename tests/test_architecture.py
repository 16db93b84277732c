"""The rooms and their doors: which package imports which, and what an import costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MATHEMATICS = {"control", "matching", "matching_loss", "matching_triton", "points", "specialise"}
LAYERS = [  # a module imports from its own row and those above
    {
        "errors",
        "types",
        "edm",
        "solvers",
        "condition",
        "files",
        "tensorfiles",
        "model_card",
        "latents",
        "scores",
        "bootstrap",
        "counting",
        "recipe_files",
        "checkpoints",
    },
    MATHEMATICS
    | {
        "images",
        "edits",
        "blend",
        "shards",
        "heldout",
        "scenes",
        "shapes",
        "textures",
        "signals",
        "perceptual",
        "dift",
    },
    {"unet", "pairs", "report", "adherence", "metrics", "provenance"},
    {"backbone", "folders", "tiny", "trainable", "svd"},
    {"editor"},
    {"sampler", "correspondence", "optimiser"},
    {"pipeline"},
    {"module", "prior", "autoencoder"},
    {"plan"},
    {"convert", "evaluation", "demo"},
    {"bench"},
    {"cli", "trainer_cli", "quickstart", "sweep", "__main__", "__init__"},
]
ROW = {name: row for row, names in enumerate(LAYERS) for name in names}
DATA_ROOMS = {"pairs", "signals", "shards", "scenes", "shapes", "textures"}
NETWORK = MATHEMATICS | {
    *("condition", "unet", "backbone", "tiny", "autoencoder", "trainable", "svd", "plan"),
    *("editor", "sampler", "correspondence", "optimiser", "pipeline", "module", "prior", "convert", "folders"),
}


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports anywhere, relative ones resolved."""
    package = path.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            found.add(".".join([*base, *([node.module] if node.module else [])]))
    return found


def room(dotted: str) -> str | None:
    parts = dotted.split(".")
    return parts[1] if parts[0] == "fp_lightning" and len(parts) > 1 else None


FILES = sorted(p for d in ("fp_lightning", "callbacks", "datamodules") for p in (ROOT / d).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    top, *rest = path.relative_to(ROOT).parts
    rooms = {r for name in imports(path) if (r := room(name))}
    outer = {name.split(".")[0] for name in imports(path)} & {"callbacks", "datamodules"}
    if top == "fp_lightning":
        own = rest[0].removesuffix(".py")
        assert not outer, "recipes join the packages, fp_lightning does not"
        assert all(ROW[r] <= ROW[own] for r in rooms)
        if own in DATA_ROOMS:
            assert not rooms & NETWORK
    elif top == "datamodules":
        assert rooms <= DATA_ROOMS - {"pairs"} | {"types", "errors", "files", "images", "edits", "latents", "heldout"}
        assert "callbacks" not in outer
    else:
        assert rooms <= {"types", "errors", "files", "images", "metrics", "report", "counting"}
        assert "datamodules" not in outer


def test_every_module_has_a_row():
    names = {
        p.relative_to(ROOT / "fp_lightning").parts[0].removesuffix(".py") for p in (ROOT / "fp_lightning").rglob("*.py")
    }
    assert names - {"assets"} == set(ROW)


@pytest.mark.parametrize("statement", ["import fp_lightning", "import fp_lightning.cli"])
def test_importing_brings_no_heavy_package(statement):
    heavy = ("torch", "diffusers", "lightning", "cv2", "av")
    code = f"{statement}; import sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
