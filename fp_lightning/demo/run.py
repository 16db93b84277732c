"""One press of Edit on the page: its candidates, as they finish."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from fp_lightning.demo.editing import EditService, Progress
from fp_lightning.demo.pictures import thumbnail
from fp_lightning.demo.queue import Cancelled, EditQueue, Job
from fp_lightning.demo.session import Session
from fp_lightning.media.edits import Edit


class EditRun:
    """The candidates of one drawing. They enter the history as they finish, whether or not a page watches.

    Args:
        session: whose history.
        base: key of the photo in it.
        edits: one per candidate.

    Raises:
        InputError: the queue is full.
    """

    def __init__(
        self, service: EditService, queue: EditQueue, session: Session, base: str, edits: Sequence[Edit]
    ) -> None:
        self.session, self.base, self.edits = session, base, edits
        self.items: list[dict[str, Any]] = [{"caption": f"seed {edit.seed}"} for edit in edits]  # of `pictures`
        self.job: Job = queue.submit(
            session.token, lambda job: service.run(job, edits, lambda *result: self._finish(job, *result))
        )

    def _finish(self, job: Job, edit: Edit, image: Image.Image) -> None:
        job.report("Saving …")
        node = self.session.add_edit(image, edit, self.base, f"seed {edit.seed}, {signal_names(edit)}")
        number = edit.seed - self.edits[0].seed
        self.items[number] = {"key": node.key, "src": thumbnail(image, 256), "caption": f"seed {edit.seed}"}

    def show(self, progress: Progress) -> tuple[str, float]:
        """Show the preview of a step. Return the progress in words and from 0 to 1."""
        count, item = len(self.edits), self.items[progress.candidate]
        if "key" not in item:
            item["src"] = progress.preview
        which = f"Candidate {progress.candidate + 1} of {count}, step" if count > 1 else "Step"
        share = (progress.candidate + progress.done / progress.steps) / count
        return f"{which} {progress.done} of {progress.steps}", share

    @property
    def finished(self) -> list[dict[str, Any]]:
        """The items of finished candidates."""
        return [item for item in self.items if "key" in item]

    def result(self) -> str:
        """Wait for the end; return a sentence about it.

        Raises:
            Exception: what ended the run, unless it was cancelled.
        """
        try:
            cost = self.job.future.result()
        except Cancelled:
            return f"Cancelled after {len(self.finished)} of {len(self.edits)} candidates; your drawing is kept."
        count = len(self.finished)
        return f"{count} edit{'s' * (count != 1)} in {cost.seconds:.1f} s, using {cost.memory}."


def signal_names(edit: Edit) -> str:
    """Return the edit's signals in words, such as "sketch + region"."""
    names = {"sketch": edit.sketch, "drag": edit.points, "cut & paste": edit.coarse, "region": edit.region}
    return " + ".join(name for name, value in names.items() if value is not None)
