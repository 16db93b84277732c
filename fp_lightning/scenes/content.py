"""What a procedural scene shows: number, size, motion and look of its objects."""

from __future__ import annotations

from dataclasses import dataclass

from fp_lightning.errors import InputError

CLEAR = 0.5  # distance between the mean colours of a clear object and the ground, in RGB from 0 to 1


@dataclass(frozen=True)
class SceneContent:
    """Ranges that the objects, motion and look of a scene are drawn from.

    Args:
        objects: smallest and largest number of objects.
        motion: smallest and largest displacement over the whole clip, in image widths (8 to 24 px at 64 px width
            is 0.125 to 0.375).
        radius: smallest and largest radius of an object, in image widths.
        turn: largest rotation over the clip, in radians.
        growth: largest change of log scale over the clip.
        detail: resolution of the textures, in [0, 1]. At 1 they have all details that the image can show; at 0.5
            all their structures are twice as large.
        exposure: 0 for well-lit scenes; up to 1 for dark, bright, low-contrast and tinted ones.
        variety: 0 for plain outlines that move by similarity transforms; up to 1, the probability with which an
            object is stretched, hollow, bending or has swinging limbs (see `varied`), and with which the scene has
            shadows and a glossy floor with mirror images. Shadows and mirror images do not change flow and tracks,
            which belong to the surface beneath them.
        clarity: probability with which an object differs clearly from the ground: its mean colour is at least
            `CLEAR` away. At 0 its texture is drawn without regard to the ground.

    Raises:
        InputError: `exposure`, `variety`, `clarity` or `detail` is outside [0, 1], or `objects`, `motion` or `radius`
            is not a valid range.
    """

    objects: tuple[int, int] = (1, 1)
    motion: tuple[float, float] = (0.125, 0.375)
    radius: tuple[float, float] = (0.12, 0.24)
    turn: float = 0.3
    growth: float = 0.1
    detail: float = 1.0
    exposure: float = 0.0
    variety: float = 0.0
    clarity: float = 0.0

    def __post_init__(self) -> None:
        for name in ("exposure", "variety", "clarity", "detail"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise InputError(f"{name} of a scene must be between 0 and 1, got {value:g}")
        for name in ("objects", "motion", "radius"):
            least, most = getattr(self, name)
            if not 0 <= least <= most:
                raise InputError(
                    f"{name} of a scene must be a smallest and a largest value, 0 or more, got {least:g} and {most:g}"
                )
