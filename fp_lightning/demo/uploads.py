"""Reads uploads. Files are opened only in the upload folder, and only their content tells their kind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from fp_lightning.errors import InputError
from fp_lightning.media.edits import Edit, parse_edit
from fp_lightning.media.reading import decode_image

EDIT_FACTOR = 4  # a saved edit holds its images without loss


@dataclass(frozen=True)
class Uploads:
    """Reads uploads.

    Args:
        folder: the only folder in which files are opened.
        max_bytes: of a photo or signal. A saved edit may have four times as many.
        max_pixels: of an image.
    """

    folder: Path
    max_bytes: int = 25_000_000
    max_pixels: int = 40_000_000

    def read(self, path: str, edit: bool = False) -> tuple[str, bytes]:
        """Return an upload's name, for messages, and its bytes.

        Args:
            edit: it is a saved edit, which may be larger.

        Raises:
            InputError: the file is outside of the folder, missing or too large.
        """
        file, name = self._found(path)
        size, most = file.stat().st_size, self.max_bytes * (EDIT_FACTOR if edit else 1)
        if size > most:
            raise InputError(f"{name} has {size / 1e6:.1f} MB, more than {most / 1e6:g} MB; make it smaller")
        return name, file.read_bytes()

    def _found(self, path: str) -> tuple[Path, str]:
        """The path of an upload, and its name for messages."""
        file = Path(path).resolve()
        name = file.name[-60:] or "the file"
        if not file.is_relative_to(self.folder.resolve()) or not file.is_file():
            raise InputError(f"{name} is not an uploaded file; upload it again")
        return file, name

    def image(self, path: str) -> Image.Image:
        """Read a photo, see `decode_image`.

        Raises:
            InputError: it is not a usable image.
        """
        name, data = self.read(path)
        return decode_image(data, name, self.max_pixels)

    def signal(self, path: str) -> Image.Image:
        """Read a sketch, a coarse edit or a region, with its transparency, which tells where it is."""
        name, data = self.read(path)
        return decode_image(data, name, self.max_pixels, keep_transparency=True)

    def edit(self, path: str) -> Edit:
        """Read a saved edit, see `parse_edit`.

        Raises:
            InputError: it is not a usable edit.
        """
        name, data = self.read(path, edit=True)
        return parse_edit(data, name, self.max_pixels)

    def photo_or_edit(self, path: str) -> tuple[str, Image.Image | Edit]:
        """Read a photo or a saved edit, told apart by the first byte; return its name and content.

        Raises:
            InputError: it is neither, or not usable.
        """
        file, name = self._found(path)
        with file.open("rb") as stream:
            is_edit = stream.read(1) == b"{"
        return name, self.edit(path) if is_edit else self.image(path)
