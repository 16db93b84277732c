"""The folder a user edits from: NAME.(png|jpg|jpeg|webp) with NAME.SIGNAL.png and the like beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps
from torch import Tensor

from fp_lightning.errors import InputError
from fp_lightning.images import squeeze, strokes

IMAGES = (".png", ".jpg", ".jpeg", ".webp")
SIGNALS = (".sketch", ".coarse", ".points")


@dataclass(frozen=True)
class InputImage:
    """An image to edit: its path and its upright (height, width) in pixels."""

    path: Path
    size: tuple[int, int]

    @property
    def name(self) -> str:
        return self.path.stem

    def resized(self, size: tuple[int, int]) -> Tensor:
        """uint8 [3, h, w] at `size` (height, width), antialiased."""
        return squeeze(read_image(self.path), size)

    def signal(self, suffix: str) -> Path:
        """The file NAME + suffix beside the image.

        Raises:
            InputError: there is none.
        """
        path = self.path.with_name(self.name + suffix)
        if not path.is_file():
            raise InputError(f"{self.path} has no signal; put {path.name} beside it")
        return path


def list_inputs(folder: str | None) -> list[InputImage]:
    """The images of a folder by name.

    Raises:
        InputError: the folder is not given or missing, holds no image, an image is unreadable, or two share a name.
    """
    if folder is None:
        raise InputError(
            "data.inputs is not set; give it a folder of images with their signals, as in photo.jpg, photo.sketch.png"
        )
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"data.inputs is {folder}, which is not a folder")
    paths = sorted(p for p in root.iterdir() if p.suffix.lower() in IMAGES and Path(p.stem).suffix not in SIGNALS)
    if not paths:
        raise InputError(
            f"{folder} holds no image; put NAME.png (or jpg, webp) with its signal, as NAME.sketch.png, in it"
        )
    by_stem: dict[str, Path] = {}
    for path in paths:
        if path.stem in by_stem:
            raise InputError(f"{by_stem[path.stem]} and {path} would have the same result; rename one")
        by_stem[path.stem] = path
    return [_probe(path) for path in paths]


def _probe(path: Path) -> InputImage:
    image = read_image(path)
    return InputImage(path, (image.height, image.width))


def read_image(path: Path) -> Image.Image:
    """A decoded image, turned upright as its EXIF says.

    Raises:
        InputError: it does not decode.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is not a readable image ({error}); save it again as PNG") from error


def read_sketch(path: Path, image_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """A user's sketch as control image, float [3, h, w] at `size` (height, width), see `strokes`.

    Raises:
        InputError: it does not decode.
    """
    return strokes(read_image(path), image_size, size, str(path))
