"""Find videos: files, folders of frames, and folders of both."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from fp_lightning.errors import InputError

EXTENSIONS = {
    *(".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv"),
    *(".ogv", ".3gp", ".mxf", ".vob", ".y4m", ".gif", ".apng"),
}
FRAMES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}


def list_videos(paths: Sequence[str | Path]) -> list[Path]:
    """List the given files and all videos inside the given folders, in order and without duplicates.

    Folders are searched recursively. Links are followed, and what several paths lead to is listed once. Hidden files
    and folders are left out. A folder that holds images and no video file counts as a video with one frame per
    image. A given file counts as a video whatever its extension.

    Raises:
        InputError: a path does not exist or is a pipe or device, or a folder cannot be read or holds no video.
    """
    found: dict[Path, Path] = {}  # resolved path → path as given
    for path in map(Path, paths):
        if path.is_dir():
            files = _search(path)
        elif path.is_file():
            files = [path]
        else:
            kind = "is neither a file nor a folder" if path.exists() else "does not exist"
            raise InputError(f"{path} {kind}; give video files or folders of them")
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def frame_files(folder: str | Path) -> list[Path]:
    """List the images of a folder in natural order: frame2 comes before frame10."""
    files = [path for path in Path(folder).iterdir() if path.suffix.lower() in FRAMES and not _hidden(path.name)]
    return sorted(files, key=lambda p: [(int(s), "") if s.isdecimal() else (-1, s) for s in re.split(r"(\d+)", p.name)])


def _search(root: Path) -> list[Path]:
    """List the videos inside a folder, sorted.

    Raises:
        InputError: a folder cannot be read, or there is no video.
    """
    videos: list[Path] = []
    for folder, names in _walk(root):
        files = [path for path in map(folder.joinpath, names) if path.is_file() or not path.exists()]
        films = [path for path in files if path.suffix.lower() in EXTENSIONS]  # a broken link is reported when read
        images = any(path.suffix.lower() in FRAMES for path in files)
        videos += films or ([folder] if images else [])
    if not videos:
        raise InputError(f"{root} holds no video; use folders of images or files with {' '.join(sorted(EXTENSIONS))}")
    return sorted(videos)


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder once, by its real path, with the names of its files. Hidden names are left out."""

    def unreadable(error: OSError) -> None:
        raise InputError(
            f"{error.filename} cannot be read ({error.strerror}); change its permissions, or give other folders"
        ) from error

    seen: set[str] = set()
    for folder, inside, names in os.walk(root, onerror=unreadable, followlinks=True):
        real = os.path.realpath(folder)
        inside[:] = [] if real in seen else sorted(name for name in inside if not _hidden(name))
        if real not in seen:
            seen.add(real)
            yield Path(folder), sorted(name for name in names if not _hidden(name))


def _hidden(name: str) -> bool:
    """Whether a file or folder is hidden; so are the AppleDouble files `._NAME` that macOS writes on other disks."""
    return name.startswith(".")
