"""The provenance of a run: with its configuration, enough to reproduce it."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fp_lightning.pairs.shards import MANIFEST

PACKAGES = ("fp_lightning", "torch", "lightning", "diffusers", "transformers", "torchmetrics", "numpy", "peft")


def provenance(pairs: str | None) -> dict[str, Any]:
    """Return the command, versions of Python and packages, the code's commit, and the SHA-256 of the pairs' manifest.

    Args:
        pairs: folder of the pairs, or None. Pairs in object storage have no hash.
    """
    return {
        "command": sys.argv[1:],
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "git": _git(Path(__file__).parent),
        "pairs_manifest_sha256": _hash(pairs),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(folder: Path) -> dict[str, Any] | None:
    """Return the code's commit and whether tracked files differ from it; None if git does not track the code."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # an installed copy may be inside another work tree
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _hash(pairs: str | None) -> str | None:
    path = None if pairs is None else Path(pairs) / MANIFEST
    return hashlib.sha256(path.read_bytes()).hexdigest() if path is not None and path.is_file() else None
