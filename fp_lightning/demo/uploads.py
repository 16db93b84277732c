"""What comes from outside: files are opened only in the upload folder, and believed by their content alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from fp_lightning.edits import Edit, parse_edit
from fp_lightning.errors import InputError
from fp_lightning.images import decode_image


@dataclass(frozen=True)
class Uploads:
    """Reads uploads.

    Args:
        folder: the only one in which files are opened.
        max_bytes: of a file.
        max_pixels: of an image.
    """

    folder: Path
    max_bytes: int = 25_000_000
    max_pixels: int = 40_000_000

    def read(self, path: str) -> tuple[str, bytes]:
        """The name of an upload, for messages, and its bytes.

        Raises:
            InputError: it lies elsewhere, is gone or too large.
        """
        file = Path(path).resolve()
        name = file.name[-60:] or "the file"
        if not file.is_relative_to(self.folder.resolve()) or not file.is_file():
            raise InputError(f"{name} is not among the uploads; send it again")
        size = file.stat().st_size
        if size > self.max_bytes:
            raise InputError(f"{name} has {size / 1e6:.1f} MB, more than {self.max_bytes / 1e6:g}; make it smaller")
        return name, file.read_bytes()

    def image(self, path: str) -> Image.Image:
        """An uploaded photo, see `decode_image`.

        Raises:
            InputError: it is not usable.
        """
        name, data = self.read(path)
        return decode_image(data, name, self.max_pixels)

    def signal(self, path: str) -> Image.Image:
        """The same with its transparency, which says where a sketch, a coarse edit or a region is."""
        name, data = self.read(path)
        return decode_image(data, name, self.max_pixels, keep_transparency=True)

    def photo_or_edit(self, path: str) -> Image.Image | Edit:
        """An uploaded photo or saved edit, told apart by the first byte.

        Raises:
            InputError: it is neither, or not usable.
        """
        name, data = self.read(path)
        if data.lstrip()[:1] == b"{":
            return parse_edit(data, name, self.max_pixels)
        return decode_image(data, name, self.max_pixels)
