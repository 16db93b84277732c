"""Make sure that `callbacks` and `datamodules`, which recipes name, are the packages beside fp_lightning."""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from pathlib import Path

from fp_lightning.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("callbacks", "datamodules")


def prefer_own_packages() -> None:
    """Put the folder of fp_lightning before the first folder of `sys.path` with other packages of these names.

    `python -m fp_lightning` and `torchrun -m fp_lightning` search the working folder first, where a project may have
    a package `callbacks` of its own. Modules with other names are still found there.

    Raises:
        InputError: another package of such a name is already imported.
    """
    for name in NAMES:
        loaded = getattr(sys.modules.get(name), "__file__", None)
        if loaded is not None and not _is_own(loaded):
            raise InputError(f"{loaded} was imported in place of fp_lightning's package `{name}`; rename it")
        for index, entry in enumerate(sys.path):
            spec = PathFinder.find_spec(name, [entry or "."])
            if spec is None or spec.origin is None:  # without an origin it is a folder without __init__.py
                continue
            if not _is_own(spec.origin):
                sys.path.insert(index, str(ROOT))
            break


def _is_own(file: str) -> bool:
    return Path(file).resolve().is_relative_to(ROOT)
