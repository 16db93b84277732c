"""What is set on the page, in the order of its components: from there to an edit's settings, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fp_lightning.errors import InputError
from fp_lightning.inference.sampler import Sampling
from fp_lightning.media.edits import Edit

MOST_CANDIDATES = 4
MOST_SEED = 2**53  # the greatest whole number that a browser holds exactly


@dataclass(frozen=True)
class Controls:
    """The values of the controls, as they come from the page; `settings` checks them."""

    candidates: Any = 1
    seed: Any = 0  # of the first candidate
    steps: Any = Sampling.num_inference_steps
    control: Any = Sampling.control_scale
    guidance: Any = Sampling.guidance_scale
    solver: Any = Sampling.solver
    keep: Any = False
    reuse: Any = Sampling.reuse
    interval: Any = ""  # two noise levels as text

    def seeds(self) -> list[int]:
        """The seed of each candidate.

        Raises:
            InputError: there are none or too many, or one is not usable.
        """
        if type(self.candidates) is not int or not 1 <= self.candidates <= MOST_CANDIDATES:
            raise InputError(f"candidates must be 1 to {MOST_CANDIDATES}, got {self.candidates}")
        if type(self.seed) is not int or not 0 <= self.seed <= MOST_SEED:
            raise InputError(f"the seed must be a whole number from 0 to {MOST_SEED}, got {self.seed}")
        return list(range(self.seed, self.seed + self.candidates))

    def settings(self) -> dict[str, Any]:
        """Of an `Edit`.

        Raises:
            InputError: the noise levels are not two numbers.
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
        """As an edit was made."""
        given = {"keep_unedited": False, **vars(Sampling()), **edit.settings}
        interval = given["guidance_interval"]
        return cls(
            seed=min(edit.seed, MOST_SEED),
            steps=given["num_inference_steps"],
            control=given["control_scale"],
            guidance=given["guidance_scale"],
            solver=given["solver"],
            keep=given["keep_unedited"],
            reuse=given["reuse"],
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
        raise InputError(f"noise levels to guide must be two numbers, such as 0.2, 40; got {str(text)[:40]}") from error
    return low, high
