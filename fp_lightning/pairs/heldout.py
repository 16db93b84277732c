"""Lists of held-out pairs with a hash of each, so that a benchmark can be cited and repeated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fp_lightning.errors import InputError
from fp_lightning.files import write_text
from fp_lightning.pairs.shards import PairStore
from fp_lightning.types import VideoPair

LIST_FORMAT = "fp_lightning pairs 1"


def fingerprint(pair: VideoPair) -> str:
    """Compute the SHA-256 of a pair's images, flows and tracks. It does not depend on the file format."""
    digest = hashlib.sha256()
    for tensor in (pair.source, pair.target, pair.flow_to_source, pair.flow_to_target, pair.tracks, pair.visible):
        digest.update(repr((tuple(tensor.shape), str(tensor.dtype))).encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def choose_pairs(store: PairStore, count: int, seed: int = 0) -> list[int]:
    """Choose `count` pairs to hold out, as sorted indices of the store.

    Videos are drawn at random until they have enough pairs; `count` of these are kept, evenly spread.

    Raises:
        InputError: no video would be left for training.
    """
    videos = sorted(set(store.videos))
    order = np.random.default_rng(seed).permutation(len(videos))
    chosen: list[int] = []
    for number, position in enumerate(order):
        if len(chosen) >= count:
            break
        if number + 1 == len(videos):
            raise InputError(
                f"holding out {count} pairs needs all {len(videos)} videos of {store.root}, none is left for training; "
                "lower --count, or build pairs of more videos"
            )
        chosen += [i for i, video in enumerate(store.videos) if video == videos[position]]
    keep = min(count, len(chosen))
    return sorted(chosen[i * len(chosen) // keep] for i in range(keep))


def write_list(store: PairStore, indices: Sequence[int], path: Path, seed: int) -> None:
    """Write the list of the pairs at `indices`, with names, videos and hashes, as JSON. `seed` is recorded."""
    pairs = [{"name": store.name(i), "video": store.videos[i], "sha256": fingerprint(store[i])} for i in indices]
    total = hashlib.sha256("".join(pair["sha256"] for pair in pairs).encode()).hexdigest()
    content = {"format": LIST_FORMAT, "sha256": total, "seed": seed, "pairs": pairs}
    write_text(path, json.dumps(content, indent=1))


def read_list(path: Path) -> list[dict[str, str]]:
    """Read a list of held-out pairs; each has "name", "video" and "sha256".

    Raises:
        InputError: the file is not such a list.
    """
    try:
        content = json.loads(path.read_bytes())
        assert content["format"] == LIST_FORMAT
        return [{key: str(pair[key]) for key in ("name", "video", "sha256")} for pair in content["pairs"]]
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise InputError(f"{path} is not a list of held-out pairs; write one with `fp-lightning benchmark`") from error


def listed_pairs(store: PairStore, path: Path) -> list[int]:
    """Find the pairs of a list in the store, check their hashes, and return their indices.

    Raises:
        InputError: a listed pair is missing or has changed.
    """
    listed, by_name = read_list(path), {store.name(i): i for i in range(len(store))}
    missing = [pair["name"] for pair in listed if pair["name"] not in by_name]
    if missing:
        raise InputError(
            f"{store.root} lacks {len(missing)} of {len(listed)} pairs of {path}, first {missing[0]}; "
            "use the pairs that were listed"
        )
    changed = [pair["name"] for pair in listed if fingerprint(store[by_name[pair["name"]]]) != pair["sha256"]]
    if changed:
        raise InputError(
            f"{len(changed)} of {len(listed)} pairs of {path} differ from those in {store.root}, first {changed[0]}; "
            "use the pairs that were listed"
        )
    return [by_name[pair["name"]] for pair in listed]
