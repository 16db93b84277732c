"""Lists of held-out pairs: which they are, with a hash of each, so that a benchmark can be cited and repeated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fp_lightning.errors import InputError
from fp_lightning.files import write_atomic
from fp_lightning.pairs.shards import PairStore
from fp_lightning.types import VideoPair

LIST_FORMAT = "fp_lightning pairs 1"


def fingerprint(pair: VideoPair) -> str:
    """SHA-256 of a pair's images, flows and tracks, whatever they are stored as."""
    digest = hashlib.sha256()
    for tensor in (pair.source, pair.target, pair.flow_to_source, pair.flow_to_target, pair.tracks, pair.visible):
        digest.update(repr((tuple(tensor.shape), str(tensor.dtype))).encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def choose_pairs(store: PairStore, count: int, seed: int = 0) -> list[int]:
    """About `count` pairs to be held out: of videos drawn at random, whose pairs are spread evenly if they are more.

    Raises:
        InputError: no video would be left to train on.
    """
    videos = sorted(set(store.videos))
    order = np.random.default_rng(seed).permutation(len(videos))
    chosen: list[int] = []
    for number, position in enumerate(order):
        if len(chosen) >= count:
            break
        if number + 1 == len(videos):
            raise InputError(
                f"{count} pairs are in all {len(videos)} videos of {store.root}, none would be left to train on; "
                "hold out fewer with --count, or make pairs of more videos"
            )
        chosen += [i for i, video in enumerate(store.videos) if video == videos[position]]
    keep = min(count, len(chosen))
    return sorted(chosen[i * len(chosen) // keep] for i in range(keep))


def write_list(store: PairStore, indices: Sequence[int], path: Path, seed: int) -> None:
    """Writes the list of held-out pairs with a hash of each, so that a benchmark can be cited and repeated."""
    pairs = [{"name": store.name(i), "video": store.videos[i], "sha256": fingerprint(store[i])} for i in indices]
    total = hashlib.sha256("".join(pair["sha256"] for pair in pairs).encode()).hexdigest()
    content = {"format": LIST_FORMAT, "sha256": total, "seed": seed, "pairs": pairs}
    write_atomic(path, json.dumps(content, indent=1).encode())


def read_list(path: Path) -> list[dict[str, str]]:
    """The pairs of a list, each with "name", "video" and "sha256".

    Raises:
        InputError: it is not such a list.
    """
    try:
        content = json.loads(path.read_bytes())
        assert content["format"] == LIST_FORMAT
        return [{key: str(pair[key]) for key in ("name", "video", "sha256")} for pair in content["pairs"]]
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise InputError(f"{path} is no list of held-out pairs; write one with `fp-lightning benchmark`") from error


def listed_pairs(store: PairStore, path: Path) -> list[int]:
    """Where the pairs of a list are in the store, once all of them are there and are those that were listed.

    Raises:
        InputError: some are not.
    """
    listed, by_name = read_list(path), {store.name(i): i for i in range(len(store))}
    missing = [pair["name"] for pair in listed if pair["name"] not in by_name]
    if missing:
        raise InputError(f"{store.root} lacks {len(missing)} of {len(listed)} pairs of {path}, {missing[0]} first")
    changed = [pair["name"] for pair in listed if fingerprint(store[by_name[pair["name"]]]) != pair["sha256"]]
    if changed:
        raise InputError(
            f"{len(changed)} of {len(listed)} pairs of {path} differ from those in {store.root}, {changed[0]} first; "
            "use the pairs that were listed"
        )
    return [by_name[pair["name"]] for pair in listed]
