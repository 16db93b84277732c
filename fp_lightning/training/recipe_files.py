"""Where recipes are found by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fp_lightning.errors import InputError

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def recipe_path(name: str) -> str:
    """A file as it stands, or the recipe of that name: `tiny` is as good as `recipes/tiny.yaml`.

    Raises:
        InputError: neither exists; lists the recipes.
    """
    if Path(name).is_file():
        return name
    short = name.removeprefix("recipes/")
    for candidate in (short, f"{short}.yaml"):
        if (RECIPES / candidate).is_file():
            return str(RECIPES / candidate)
    known = sorted(
        str(path.relative_to(RECIPES).with_suffix("")) for path in RECIPES.rglob("*.yaml") if path.stem != "run"
    )
    raise InputError(f"no recipe or file {name}; the recipes are {', '.join(known)}")


def resolve_recipes(arguments: Sequence[str]) -> list[str]:
    """The arguments with every `--config NAME` resolved by `recipe_path`."""
    resolved: list[str] = []
    for argument in arguments:
        if resolved and resolved[-1] in ("--config", "-c"):
            resolved.append(recipe_path(argument))
        elif argument.startswith("--config="):
            resolved.append(f"--config={recipe_path(argument.removeprefix('--config='))}")
        else:
            resolved.append(argument)
    return resolved
