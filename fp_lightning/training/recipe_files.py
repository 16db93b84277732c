"""Find recipes by name, and check that they can be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fp_lightning.errors import InputError
from fp_lightning.files import describe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def recipe_path(name: str) -> str:
    """Return a file as it stands, or the recipe of that name: `tiny` is as good as `recipes/tiny.yaml`.

    Raises:
        InputError: neither exists (the message lists the recipes), or `check_recipe` rejects it.
    """
    if Path(name).is_file():
        check_recipe(Path(name))
        return name
    short = name.removeprefix("recipes/")
    for candidate in (short, f"{short}.yaml"):
        if (RECIPES / candidate).is_file():
            return str(RECIPES / candidate)
    known = sorted(
        str(path.relative_to(RECIPES).with_suffix("")) for path in RECIPES.rglob("*.yaml") if path.stem != "run"
    )
    raise InputError(f"no recipe or file {name}; the recipes are {', '.join(known)}")


def check_recipe(path: Path) -> None:
    """Check that a file is a recipe: UTF-8 text in YAML, with names and values at its top.

    Raises:
        InputError: it is not.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot read the recipe {describe(error, path)}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"the recipe {path} is not UTF-8 text; save it as UTF-8 from a text editor") from error
    except (yaml.YAMLError, RecursionError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = problem or " ".join(str(error).split())
        raise InputError(f"the recipe {path} is not YAML{where}: {reason}; correct it there") from error
    if not isinstance(content, dict):
        found = "empty" if content is None else f"a {type(content).__name__}"
        raise InputError(f"the recipe {path} is {found}; it must hold names and values, such as `trainer: …`")


def resolve_recipes(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with every `--config NAME` resolved by `recipe_path`."""
    resolved: list[str] = []
    for argument in arguments:
        if resolved and resolved[-1] in ("--config", "-c"):
            resolved.append(recipe_path(argument))
        elif argument.startswith("--config="):
            resolved.append(f"--config={recipe_path(argument.removeprefix('--config='))}")
        else:
            resolved.append(argument)
    return resolved
