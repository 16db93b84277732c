"""One press of Edit on the page: its candidates, as far as they are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from fp_lightning.demo.desk import Cancelled, Desk, Job
from fp_lightning.demo.pictures import thumbnail
from fp_lightning.demo.studio import Step, Studio
from fp_lightning.demo.work import Work
from fp_lightning.media.edits import Edit


class EditRun:
    """Candidates of one drawing in the line; what is made goes into the history, whoever watches.

    Args:
        work: whose history.
        base: key of the photo in it.
        edits: one a candidate.

    Raises:
        InputError: the line is full.
    """

    def __init__(self, studio: Studio, desk: Desk, work: Work, base: str, edits: Sequence[Edit]) -> None:
        self.work, self.base, self.edits = work, base, edits
        self.items: list[dict[str, Any]] = [{"caption": f"seed {edit.seed}"} for edit in edits]  # of `pictures`
        self.job: Job = desk.submit(
            work.token, lambda job: studio.make(job, edits, lambda *result: self._finished(job, *result))
        )

    def _finished(self, job: Job, edit: Edit, image: Image.Image) -> None:
        job.tell("Saving …")
        node = self.work.add(image, edit, self.base, f"seed {edit.seed}, {kinds(edit)}")
        number = edit.seed - self.edits[0].seed
        self.items[number] = {"key": node.key, "src": thumbnail(image, 256), "caption": f"seed {edit.seed}"}

    def see(self, step: Step) -> tuple[str, float]:
        """Shows the step's preview; returns how far it is, in words and from 0 to 1."""
        count, item = len(self.edits), self.items[step.number]
        if "key" not in item:
            item["src"] = step.preview
        which = f"Candidate {step.number + 1} of {count}, step" if count > 1 else "Step"
        return f"{which} {step.done} of {step.steps}", (step.number + step.done / step.steps) / count

    @property
    def made(self) -> list[dict[str, Any]]:
        """The items that are made."""
        return [item for item in self.items if "key" in item]

    def result(self) -> str:
        """What it came to, in words.

        Raises:
            Exception: that ended it, unless it was cancelled.
        """
        try:
            cost = self.job.future.result()
        except Cancelled:
            return f"Cancelled, {len(self.made)} of {len(self.edits)} made; your drawing is kept."
        count = len(self.made)
        return f"{count} edit{'s' * (count != 1)} in {cost.seconds:.1f} s; memory {cost.memory}."


def kinds(edit: Edit) -> str:
    """Its signals, in words."""
    names = {"sketch": edit.sketch, "drag": edit.points, "cut & paste": edit.coarse, "region": edit.region}
    return " + ".join(name for name, value in names.items() if value is not None)
