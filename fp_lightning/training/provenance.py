"""What a run was made of, beside its configuration: enough to make it again."""

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
    """The command, versions, the state of the code, and the hash of the list of pairs.

    Args:
        pairs: folder of the data, if there is one. Of pairs in object storage no hash is taken.
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
    """The commit of the code, and whether it was changed since; None where it is no work tree of its own."""

    def ask(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        ask("ls-files", "--error-unmatch", Path(__file__).name)  # an installed copy can lie in somebody else's
        return {"commit": ask("rev-parse", "HEAD"), "changed": bool(ask("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _hash(pairs: str | None) -> str | None:
    path = None if pairs is None else Path(pairs) / MANIFEST
    return hashlib.sha256(path.read_bytes()).hexdigest() if path is not None and path.is_file() else None
