"""Store and read pairs: one safetensors file per video, with images and flows as lossless PNG.

A folder of pairs has `manifest.json`, which lists the videos and their numbers of pairs, and
`shards/NAME.safetensors`. One small file thus lists all pairs, any rank can read any pair, and an epoch can
resume at any sample. Pair i of a shard has these byte tensors:

- `i.source` and `i.target`: 8-bit PNG.
- `i.flow_to_source`, `i.flow_to_target` and `i.tracks`: 16-bit PNG as in KITTI, value · 64 + 2^15, for ±512 px in
  steps of 1/64 px. Tracks are stored as displacements from their token's centre, visibility as the third channel.

The video's name and the `meta` of each pair are JSON in the header. The folder can be any URL that fsspec supports,
for example in object storage.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from fp_lightning.errors import InputError
from fp_lightning.files import read_json, well_formed, written_beside
from fp_lightning.types import VideoPair, token_centres

MANIFEST, FOLDER = "manifest.json", "shards"
MOST = 10_000_000  # pairs or candidates of one video
QUANTUM, OFFSET = 64.0, 2.0**15  # stored steps per pixel; stored value of 0 px
FLOW_LIMIT = 512 - 1 / QUANTUM  # largest flow that can be stored, in pixels


def shard_path(root: str | Path, video: str) -> Path:
    """Return the shard of `video` in the folder `root`: the video's stem, made unique by a hash of its name."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(video).stem)[:60] or "video"
    return Path(root) / FOLDER / f"{stem}-{name_hash(video)[:8]}.safetensors"


def name_hash(video: str) -> str:
    """Return the SHA-1 of a video's name, which need not be UTF-8, as hexadecimal digits."""
    return hashlib.sha1(os.fsencode(video)).hexdigest()


def write_shard(root: str | Path, video: str, pairs: Sequence[VideoPair]) -> Path:
    """Write the pairs of one video atomically and return the path of the shard.

    Raises:
        InputError: a flow is not finite or exceeds FLOW_LIMIT.
    """
    tensors: dict[str, NDArray[np.uint8]] = {}
    for index, pair in enumerate(pairs):
        centres = token_centres(pair.tracks, pair.size)
        tensors[f"{index}.source"] = _image_to_png(pair.source)
        tensors[f"{index}.target"] = _image_to_png(pair.target)
        try:
            tensors[f"{index}.flow_to_source"] = _flow_to_png(pair.flow_to_source)
            tensors[f"{index}.flow_to_target"] = _flow_to_png(pair.flow_to_target)
            tensors[f"{index}.tracks"] = _flow_to_png(pair.tracks - centres, pair.visible)
        except InputError as error:
            raise InputError(f"pair {index} of {video}: {error}") from error
    path = shard_path(root, video)
    header = json.dumps({"video": video, "meta": [pair.meta for pair in pairs]})
    with written_beside(path) as partial:
        save_file(tensors, str(partial), {"header": header})  # one entry, since the order of several is not fixed
        partial.chmod(0o644)  # temporary files are private; shared folders have other readers
    return path


def write_manifest(
    root: str | Path, records: Sequence[Mapping[str, Any]], settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write `manifest.json` and return its content: the records of all videos, their totals and the settings.

    Args:
        root: folder of the pairs.
        records: for each video, `{"video": name, "pairs": n, "rejected": {reason: n}, "error": None | str}`.
        settings: settings that the pairs were built with.
    """
    manifest = _manifest(records, settings or {})
    with written_beside(Path(root) / MANIFEST) as partial:
        partial.write_text(json.dumps(manifest, indent=2))
    return manifest


def _manifest(records: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> dict[str, Any]:
    rejected: Counter[str] = sum((Counter(record["rejected"]) for record in records), Counter())
    return {
        "videos": len(records),
        "pairs": sum(record["pairs"] for record in records),
        "rejected": dict(sorted(rejected.items())),
        "settings": dict(settings),
        "per_video": list(records),
    }


def read_manifest(path: Path) -> dict[str, Any]:
    """Read `manifest.json`; see `write_manifest`. Totals are computed from the records.

    Raises:
        InputError: the file is missing, damaged, or no manifest of pairs.
    """
    remedy = "delete it and run `fp-lightning pairs` with --resume, or copy it again"
    content = read_json(path, remedy)
    with well_formed(path, remedy):
        for record in content["per_video"]:
            _check_record(record)
        return _manifest(content["per_video"], content["settings"])


def read_record(path: Path) -> dict[str, Any]:
    """Read the record that lies beside a shard: "record" as in the manifest, "settings", and with newer versions the
    "candidates" as (seconds of the source, of the target, reason or None), and "file" and "bytes" of the video.

    Raises:
        InputError: the file is missing, damaged, or no such record.
    """
    remedy = "delete it and run `fp-lightning pairs` with --resume"
    content = read_json(path, remedy)
    with well_formed(path, remedy):
        _check_record(content["record"])
        for source, target, reason in content.get("candidates", []):
            if not math.isfinite(source + target) or not isinstance(reason, str | None):
                raise ValueError(f"candidate at {source!r} and {target!r} s with the reason {reason!r}")
        for key, kind in (("settings", dict), ("file", str | None), ("bytes", int | None)):
            if not isinstance(content.get(key), kind):
                raise TypeError(f"{key} is {content.get(key)!r}")
        return content


def _check_record(record: Mapping[str, Any]) -> None:
    """Raise one of `files.MALFORMED` unless this is a record as `write_manifest` takes it."""
    video, pairs, rejected, error = (record[key] for key in ("video", "pairs", "rejected", "error"))
    if not isinstance(video, str) or not isinstance(error, str | None):
        raise TypeError(f"video {video!r} with error {error!r}")
    for count in (pairs, *rejected.values()):
        if type(count) is not int or not 0 <= count < MOST:
            raise ValueError(f"a count of {count!r} for {video}")


class PairStore:
    """Sequence of the pairs in a folder, in the order of its manifest. Pairs are read from disk on access.

    The store holds only names, so loader processes can receive it. If the folder is a URL, shards are downloaded
    on first access to a cache on disk, `$FP_LIGHTNING_CACHE` or `~/.cache/fp_lightning`.

    Args:
        root: folder of the pairs, a path or a URL.

    Raises:
        InputError: `root` has no pairs, or shards are missing.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = str(root)
        remedy = f"build some with `fp-lightning pairs VIDEOS --out {root}`"
        try:
            path = self._local(MANIFEST, fresh=True)
            path.stat()
        except FileNotFoundError as error:
            raise InputError(f"no pairs in {root} (no {MANIFEST}); {remedy}") from error
        except (OSError, ImportError, ValueError) as error:
            raise InputError(f"{root} cannot be read as pairs ({type(error).__name__}: {error}); {remedy}") from error
        counts = {record["video"]: record["pairs"] for record in read_manifest(path)["per_video"]}
        self.videos = [video for video, count in counts.items() for _ in range(count)]  # the video of each pair
        self._inner = [index for count in counts.values() for index in range(count)]
        if not self.videos:
            raise InputError(f"no pairs in {root} (its manifest lists none); {remedy}")
        if "://" not in self.root:
            names = {self._shard(index) for index in range(len(self))}
            missing = sorted(name for name in names if not (Path(self.root) / name).is_file())
            if missing:
                raise InputError(
                    f"{root} lacks {len(missing)} shards, first {missing[0]}; copy them, or build them with --resume"
                )

    def _local(self, name: str, fresh: bool = False) -> Path:
        """Return the local path of a file in the folder. A remote file is downloaded once, or each time if `fresh`."""
        if "://" not in self.root:
            return Path(self.root) / name
        import fsspec

        base = Path(os.environ.get("FP_LIGHTNING_CACHE") or Path.home() / ".cache" / "fp_lightning")
        cached = base / hashlib.sha1(self.root.encode()).hexdigest()[:16] / name
        if fresh or not cached.is_file():
            filesystem, path = fsspec.url_to_fs(f"{self.root.rstrip('/')}/{name}")
            with written_beside(cached) as partial:
                filesystem.get_file(path, str(partial))
        return cached

    def _shard(self, index: int) -> str:
        """Return the shard of a pair, relative to the folder."""
        return f"{FOLDER}/{shard_path('', self.videos[index]).name}"

    def __len__(self) -> int:
        return len(self.videos)

    def name(self, index: int) -> str:
        """Return a name of the pair that is unique in this store and valid as a file name."""
        return f"{Path(self._shard(index)).stem}-{self._inner[index]}"

    def __getitem__(self, index: int) -> VideoPair:
        """Read a pair.

        Raises:
            InputError: the pair's shard is missing or damaged.
        """
        inner, name = self._inner[index], self._shard(index)
        with _readable(f"{self.root}/{name}"):
            path = self._local(name)
        with _readable(str(path)), safe_open(str(path), "numpy") as shard:
            flows = {
                key: _png_to_flow(shard.get_tensor(f"{inner}.{key}"))[0] for key in ("flow_to_source", "flow_to_target")
            }
            moved, visible = _png_to_flow(shard.get_tensor(f"{inner}.tracks"))
            source, target = (_png_to_image(shard.get_tensor(f"{inner}.{key}")) for key in ("source", "target"))
            meta = json.loads(shard.metadata()["header"])["meta"][inner]
        tracks = moved + token_centres(moved, (source.shape[1], source.shape[2]))
        return VideoPair(source, target, **flows, tracks=tracks, visible=visible, meta=meta)


@contextmanager
def _readable(path: str) -> Iterator[None]:
    """Turn errors of reading `path` into an InputError."""
    try:
        yield
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, cv2.error) as error:
        raise InputError(
            f"{path} is damaged ({error}); delete it and run `fp-lightning pairs` with --resume"
        ) from error


def _encode(image: NDArray) -> NDArray[np.uint8]:
    """Encode RGB [h, w, 3] as PNG bytes [n]. OpenCV expects BGR."""
    return cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].reshape(-1).astype(np.uint8)


def _decode(png: NDArray[np.uint8]) -> NDArray:
    """Decode PNG bytes [n] to RGB [h, w, 3], with 8 or 16 bits.

    Raises:
        ValueError: the PNG is damaged.
    """
    image = cv2.imdecode(png, cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ValueError("a PNG in the shard cannot be decoded")
    return np.ascontiguousarray(image[..., ::-1])


def _image_to_png(image: Tensor) -> NDArray[np.uint8]:
    return _encode(image.permute(1, 2, 0).numpy())


def _png_to_image(png: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(_decode(png)).permute(2, 0, 1).contiguous()


def _flow_to_png(flow: Tensor, valid: Tensor | None = None) -> NDArray[np.uint8]:
    """Encode flow [2, h, w] in pixels and a mask [h, w], by default all True, as 16-bit PNG.

    Raises:
        InputError: the flow is not finite or exceeds FLOW_LIMIT.
    """
    if not bool((flow.abs() <= FLOW_LIMIT).all()):  # also false for NaN
        raise InputError(f"flow beyond ±{FLOW_LIMIT:.2f} px cannot be stored; build the pairs at a smaller --size")
    mask = torch.ones(flow.shape[1:]) if valid is None else valid.float()
    planes = torch.cat([flow.float() * QUANTUM + OFFSET, mask[None]])
    return _encode(planes.round().permute(1, 2, 0).numpy().astype(np.uint16))


def _png_to_flow(png: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Decode flow [2, h, w] in pixels and a mask bool [h, w]."""
    planes = torch.from_numpy(_decode(png).astype(np.float32)).permute(2, 0, 1)
    return ((planes[:2] - OFFSET) / QUANTUM).contiguous(), planes[2] > 0
