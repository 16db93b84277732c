"""The page's settings, in the order of their components: to an edit's settings, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fp_lightning.errors import InputError
from fp_lightning.inference.sampler import Sampling
from fp_lightning.media.edits import Edit

MOST_CANDIDATES = 4
MOST_SEED = 2**53  # the largest whole number that a browser holds exactly


@dataclass(frozen=True)
class Controls:
    """The values of the page's controls, as they arrive; `seeds` and `settings` check them."""

    candidates: Any = 1
    seed: Any = 0  # of the first candidate
    steps: Any = Sampling.num_inference_steps
    control: Any = Sampling.control_scale
    guidance: Any = Sampling.guidance_scale
    solver: Any = Sampling.solver
    keep: Any = True  # unedited pixels; the pipeline's default is False
    reuse: Any = Sampling.reuse
    interval: Any = ""  # two noise levels as text, or nothing for all

    @classmethod
    def default(cls, sampling: Sampling) -> Controls:
        """Return the controls before the first edit."""
        return cls(steps=sampling.num_inference_steps, guidance=sampling.guidance_scale, solver=sampling.solver)

    def seeds(self) -> list[int]:
        """Return the seed of each candidate.

        Raises:
            InputError: the number of candidates or the seed is out of range.
        """
        if type(self.candidates) is not int or not 1 <= self.candidates <= MOST_CANDIDATES:
            raise InputError(f"candidates must be 1 to {MOST_CANDIDATES}, got {self.candidates}")
        if type(self.seed) is not int or not 0 <= self.seed <= MOST_SEED:
            raise InputError(f"the seed must be a whole number from 0 to {MOST_SEED}, got {self.seed}")
        return list(range(self.seed, self.seed + self.candidates))

    def settings(self) -> dict[str, Any]:
        """Return the settings of an `Edit`.

        Raises:
            InputError: the guidance interval is not two numbers.
        """
        return {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "control_scale": self.control,
            "solver": self.solver,
            "guidance_interval": _levels(self.interval),
            "reuse": self.reuse,
            "keep_unedited": self.keep,
        }

    @classmethod
    def of(cls, edit: Edit) -> Controls:
        """Return the controls that an edit was made with."""
        settings = {"keep_unedited": False, **vars(Sampling()), **edit.settings}
        interval = settings["guidance_interval"]
        return cls(
            seed=min(edit.seed, MOST_SEED),
            steps=settings["num_inference_steps"],
            control=settings["control_scale"],
            guidance=settings["guidance_scale"],
            solver=settings["solver"],
            keep=settings["keep_unedited"],
            reuse=settings["reuse"],
            interval="" if interval is None else ", ".join(f"{level:g}" for level in interval),
        )


def _levels(text: Any) -> tuple[float, float] | None:
    """ "0.2, 40" → (0.2, 40.0); nothing → None."""
    words = str(text or "").replace(";", ",").split(",")
    if words == [""]:
        return None
    try:
        low, high = (float(word) for word in words)
    except ValueError as error:
        raise InputError(f"the guidance interval must be two numbers, such as 0.2, 40; got {str(text)[:40]}") from error
    return low, high
