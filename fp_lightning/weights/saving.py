"""Save weights over an earlier save, so that nothing of the earlier one is left to be loaded."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

# the names that diffusers and transformers give weight files, their shards and the indices of shards
_WEIGHTS = re.compile(
    r"(diffusion_pytorch_model|pytorch_model|model)"
    r"(\.(?P<single>\w+))??(-\d{5}-of-\d{5})?(\.(?P<shard>\w+))??"
    r"\.(safetensors|bin)(\.index(\.(?P<index>\w+))?\.json)?"
)


def save_over(folder: str | Path, save: Callable[[Path], None], variant: str | None = None) -> None:
    """Save into `folder`, and delete the weights of an earlier save of the same variant, in whatever form.

    A folder may hold one variant as a single file, as shards with an index, or as pickles. A loader that finds
    several of them takes one, and not always the newest. Other variants and other files are kept. The new files are
    complete before the old ones are touched.

    Args:
        folder: folder of a model or of a pipeline, created if it is missing.
        save: writes into the empty folder that it receives, for example a `save_pretrained` method.
        variant: variant of the weights that `save` writes, for example "fp16".
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as name:
        new = Path(name)
        save(new)
        files = sorted(path.relative_to(new) for path in new.rglob("*") if path.is_file())
        for place in {path.parent for path in files if _WEIGHTS.fullmatch(path.name)}:
            (folder / place).mkdir(parents=True, exist_ok=True)
            for old in (folder / place).iterdir():
                if is_weights(old.name, variant) and old.relative_to(folder) not in files:
                    old.unlink()
        for path in sorted(files, key=lambda path: -len(path.parts)):  # model_index.json last
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(new / path, folder / path)


def is_weights(name: str, variant: str | None = None) -> bool:
    """Return whether a file name is that of weights, a shard or an index of this variant."""
    match = _WEIGHTS.fullmatch(name)
    return match is not None and (match["single"] or match["shard"] or match["index"]) == variant
