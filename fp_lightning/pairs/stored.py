"""What a folder of pairs already holds, for a run that continues it or adds videos."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp_lightning.errors import InputError
from fp_lightning.pairs.shards import FOLDER, MANIFEST, read_manifest, read_record, shard_path

Record = dict[str, Any]


@dataclass(frozen=True)
class StoredVideo:
    """A video of the folder: its record in the manifest, and the file that it was built from."""

    record: Record
    file: str  # real path
    bytes: int | None  # size of the file; None for folders of frames and in older records

    @property
    def moved(self) -> bool:
        """Whether the file is no longer where it was."""
        return not Path(self.file).exists()


class StoredVideos:
    """The videos of a folder of pairs by name, from the records beside the shards and from the manifest.

    Args:
        out: folder of the pairs, which may be empty.
        settings: settings of the pairs, as JSON.

    Raises:
        InputError: the folder was built with other settings.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        self.out = out
        self.videos: dict[str, StoredVideo] = {}
        built_with = []
        if (out / MANIFEST).exists():
            manifest = read_manifest(out / MANIFEST)
            built_with.append(manifest["settings"])
            for record in manifest["per_video"]:
                self.videos[record["video"]] = StoredVideo(record, real_path(record["video"]), None)
        for path in sorted((out / FOLDER).glob("*.json")):
            saved = read_record(path)
            built_with.append(saved["settings"])
            name = saved["record"]["video"]
            self.videos[name] = StoredVideo(saved["record"], saved.get("file") or real_path(name), saved.get("bytes"))
        if any(each != settings for each in built_with):
            raise InputError(
                f"{out} was built with other settings; choose another --out, or resume with the same settings"
            )
        self._by_file = {video.file: name for name, video in self.videos.items()}

    def name(self, path: str) -> str:
        """Return the name in this folder of the video at `path`: that of the same file, or else a new one."""
        real = real_path(path)
        if real in self._by_file:
            return self._by_file[real]
        known = self.videos.get(path)
        if known is None or (known.moved and known.bytes in (None, file_size(path))):
            return path
        return real  # another video of this name

    def finished(self, name: str) -> bool:
        """Return whether a video needs no work. Videos with errors are tried again."""
        if name not in self.videos:
            return False
        record, shard = self.videos[name].record, shard_path(self.out, name)
        return record["error"] is None and (shard.exists() or not record["pairs"])

    def merged(self, names: Iterable[str], built: Mapping[str, Record]) -> list[Record]:
        """Return the records of all videos: those of the folder in their order, then new ones in the order of `names`.

        A video that gave pairs before and now fails keeps them, with the new error in its record.
        """
        kept = {name: video.record for name, video in self.videos.items()}
        records = {**kept, **{name: keep_pairs(kept.get(name), record) for name, record in built.items()}}
        return [records[name] for name in dict.fromkeys([*kept, *names])]


def keep_pairs(before: Record | None, now: Record) -> Record:
    """Return the record of a video that was built again."""
    failed = now["error"] and not now["pairs"] and before is not None and before["pairs"]
    return {**before, "error": now["error"]} if failed and before is not None else now


def real_path(path: str | Path) -> str:
    """Return the absolute path with links followed."""
    return str(Path(path).resolve())


def file_size(path: str | Path) -> int | None:
    """Return the size of a file in bytes, or None for a folder of frames."""
    return Path(path).stat().st_size if Path(path).is_file() else None
