"""The page: what happens on each event. State lives in `Sessions`; the browser holds its session's token."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import gradio as gr

from fp_lightning.demo.api import add_api
from fp_lightning.demo.canvas_state import canvas_state
from fp_lightning.demo.controls import Controls
from fp_lightning.demo.drafts import Drafts
from fp_lightning.demo.drawing import signals_of
from fp_lightning.demo.editing import MOST_STEPS, EditService, Progress, error_message
from fp_lightning.demo.examples import Example, examples
from fp_lightning.demo.layout import Layout, example_pictures
from fp_lightning.demo.queue import EditQueue
from fp_lightning.demo.run import EditRun
from fp_lightning.demo.segmenter import Segmenter
from fp_lightning.demo.session import Node, Session, Sessions
from fp_lightning.demo.uploads import Uploads
from fp_lightning.demo.view import Updates, View
from fp_lightning.errors import InputError
from fp_lightning.inference.sampler import PRESETS, PresetName
from fp_lightning.media.edits import Edit, read_edit
from fp_lightning.media.images import drags


class Page:
    """The page: its layout `ui`, and a handler for each event. Handlers return updates by component.

    `connect_events` connects them.

    Args:
        service: runs the edits.
        queue: of the edits.
        sessions: of all users.
        uploads: reads their files.
        segmenter: finds the object at a click; None hides the Click tool.
    """

    def __init__(
        self,
        service: EditService,
        queue: EditQueue,
        sessions: Sessions,
        uploads: Uploads,
        segmenter: Segmenter | None = None,
    ) -> None:
        self.service, self.queue, self.sessions, self.uploads = service, queue, sessions, uploads
        self.runs: dict[str, EditRun] = {}  # active, by token
        self.blocks = gr.Blocks(title="FramePainter", analytics_enabled=False, delete_cache=(600, 3600))
        with self.blocks:
            most_steps = service.editor.distilled_steps or MOST_STEPS
            draft = Drafts(service, queue, sessions).for_canvas()
            self.ui = Layout(self._segment(segmenter), draft, Controls.default(service.sampling), most_steps)
            self.view = View(self.ui)
            add_api(service, queue, uploads)

    # ---- opening -----------------------------------------------------------------------------------------------------
    async def load(self, token: Any) -> AsyncIterator[Updates]:
        """Show the browser's session and follow its active edit; or begin a session with the first example."""
        session = self.sessions.find(token)
        if session is None:
            session = self.sessions.new()
            await asyncio.to_thread(self._begin, session, examples()[0])
        photo = await asyncio.to_thread(self._canvas, session.node(session.base))
        shown = await asyncio.to_thread(self.view.session, session)
        controls = self.view.controls(session.controls or Controls.default(self.service.sampling))
        yield {self.ui.token: session.token, **photo, **shown, **controls, **self.view.idle()}
        if session.token in self.runs:
            async for updates in self._follow(self.runs[session.token]):
                yield updates

    def open_file(self, token: Any, path: str) -> Updates:
        """Open an uploaded photo or saved edit."""
        session, (name, content) = self.sessions.open(token), self.uploads.photo_or_edit(path)
        if isinstance(content, Edit):
            if content.drawing is None:
                raise InputError(
                    "this edit was not drawn on a page and has no drawing to show; reproduce it with `predict` or the "
                    "pipeline"
                )
            signals_of(content.drawing, content.image)  # raises InputError if the drawing is malformed
            node = session.add_photo(content.image, name, content.drawing)
            more, note = self.view.controls(Controls.of(content)), f"Opened {name} with its drawing and settings."
        else:
            node, more = session.add_photo(content, name), {self.ui.examples: example_pictures()}
            height, width = self.service.pipe.config.size
            note = f"Opened {name}, {content.width} × {content.height} pixels. The model edits at {width} × {height}."
        return {**self._opened(session, node, note), **more}

    def open_dropped_file(self, token: Any, event: gr.EventData) -> Updates:
        """Open a photo or saved edit that was dropped on the canvas, or pasted."""
        return self.open_file(token, str(event.path))

    def open_example(self, token: Any, value: Any) -> Updates:
        """Open the pressed example with its drawing."""
        session, index = self.sessions.open(token), str((value or {}).get("chosen"))
        if index not in map(str, range(len(examples()))):
            raise InputError(f"there is no example {index[:40]}; choose one of those on the page")
        node = self._begin(session, examples()[int(index)])
        return self._opened(session, node, "Opened the example with its drawing. Press Edit.", replace=True)

    def continue_edit(self, token: Any) -> Updates:
        """Put the shown image onto the canvas."""
        session = self.sessions.open(token)
        session.base = session.shown
        note = self.view.message("The image is on the canvas. Draw the next edit.")
        return {**self._canvas(session.node(session.base)), **self.view.session(session), **note}

    def restore_drawing(self, token: Any) -> Updates:
        """Restore the photo, drawing and settings of the shown edit."""
        session = self.sessions.open(token)
        node = session.node(session.shown)
        if node.edit is None or node.parent is None:
            raise InputError("the shown image is a photo and has no drawing; choose an edit")
        edit, base = read_edit(node.edit), session.node(node.parent)
        session.base = base.key
        return {
            **self._canvas(base, edit.drawing, replace=True),
            **self.view.controls(Controls.of(edit)),
            **self.view.session(session),
            **self.view.message("Restored the drawing and its settings. Undo brings back yours."),
        }

    def _opened(self, session: Session, node: Node, note: str, replace: bool = False) -> Updates:
        """Show another photo on the canvas."""
        photo = self._canvas(node, replace=replace)
        return {**photo, **self.view.session(session), self.ui.results: {"items": []}, **self.view.message(note)}

    def _begin(self, session: Session, example: Example) -> Node:
        """Make the example the base, with its node in the history if it has one."""
        for node in session.nodes.values():
            if node.parent is None and node.caption == example.caption:
                session.base = session.shown = node.key
                return node
        return session.add_photo(example.photo, example.caption, example.drawing)

    def _canvas(self, node: Node, drawing: Any = None, replace: bool = False) -> Updates:
        """Put an image onto the canvas, see `canvas_state`."""
        return {self.ui.canvas: gr.update(photo=canvas_state(node, drawing, replace, self.service.signals))}

    def _segment(self, segmenter: Segmenter | None) -> Callable[[Any], dict[str, Any]] | None:
        """The function that the canvas calls at a click."""
        if segmenter is None:
            return None

        def segment(click: Any) -> dict[str, Any]:
            try:
                node = self.sessions.node(click["key"])
                ((x, y),) = drags([[*click["at"], 0, 0]], node.size, node.size, "the click")[:, :2].tolist()
                job = self.queue.submit(f"click {node.key}", lambda job: segmenter.find(node.open(), x, y))
                return {"outline": job.future.result()}
            except Exception as error:
                return {"error": error_message(error)}

        return segment

    # ---- showing -----------------------------------------------------------------------------------------------------
    def show_candidate(self, token: Any, value: Any) -> Updates:
        """Show the pressed candidate."""
        return self._show(token, (value or {}).get("chosen"))

    def show_node(self, token: Any, value: Any) -> Updates:
        """Show the pressed image of the history."""
        return self._show(token, (value or {}).get("shown"))

    def _show(self, token: Any, key: Any) -> Updates:
        session = self.sessions.open(token)
        session.shown = session.node(key).key
        return {**self.view.session(session), **self.view.message(session.node(key).caption)}

    async def find_matches(self, token: Any) -> AsyncIterator[Updates]:
        """Show where each place of the shown edit attends to."""
        session = self.sessions.open(token)
        node = session.node(session.shown)
        saved = node.edit
        if saved is None:
            raise InputError("the shown image is a photo; choose an edit")
        edit, result = await asyncio.to_thread(lambda: (read_edit(saved), node.open()))
        yield self.view.message("Finding matches …")
        job = self.queue.submit(session.token, lambda job: self.service.matches(edit, result))
        async for _ in self.queue.watch(job):
            pass
        found = job.future.result()
        if found is None:
            raise InputError("this model has no attention between edit and photo, so there are no matches to show")
        yield {**self.view.matches(edit, result, found), **self.view.message("Point at the edited image.")}

    # ---- editing -----------------------------------------------------------------------------------------------------
    def new_seed(self) -> Updates:
        """Draw a random seed."""
        return {self.ui.seed: secrets.randbelow(2**31)}

    def preset(self, name: PresetName) -> Updates:
        """Set steps, guidance and solver."""
        chosen = PRESETS[name]
        return {
            self.ui.steps: chosen.num_inference_steps,
            self.ui.guidance: chosen.guidance_scale,
            self.ui.solver: chosen.solver,
        }

    async def edit(self, token: Any, drawing: Any, *values: Any) -> AsyncIterator[Updates]:
        """Queue the edit, show its progress, and end with the candidates in the history.

        `values` are those of the controls.
        """
        session = self.sessions.open(token)
        base = session.node((drawing or {}).get("key") or session.base)
        yield {**self.view.message("Preparing …"), **self.view.busy()}
        edits = await asyncio.to_thread(self._edits, base, drawing, Controls(*values))
        session.controls = Controls(*values)
        run = self.runs[session.token] = EditRun(self.service, self.queue, session, base.key, edits)
        run.job.future.add_done_callback(lambda _: self._forget(run))
        async for updates in self._follow(run):
            yield updates

    def cancel(self, token: Any) -> Updates:
        """Cancel the session's jobs."""
        count = self.queue.cancel(*self.queue.jobs_of(self.sessions.open(token).token))
        return self.view.message("Cancelling …" if count else "There is no edit to cancel.")

    def _edits(self, base: Node, drawing: Any, controls: Controls) -> list[Edit]:
        """The requested edits, checked: one per candidate."""
        seeds, settings, photo = controls.seeds(), controls.settings(), base.open()
        signals = signals_of(drawing, photo)
        saved = {name: value for name, value in drawing.items() if name != "key"}
        return [
            self.service.prepare(Edit(photo, **signals, settings=settings, seed=seed, drawing=saved)) for seed in seeds
        ]

    def _forget(self, run: EditRun) -> None:
        """Remove an ended run, unless another tab has begun a later one."""
        if self.runs.get(run.session.token) is run:
            del self.runs[run.session.token]

    async def _follow(self, run: EditRun) -> AsyncIterator[Updates]:
        """Show a run's progress until its end, then its candidates."""
        yield {**self.view.message("Waiting …"), self.ui.results: {"items": run.items}, **self.view.busy()}
        async for update in self.queue.watch(run.job):
            if isinstance(update, Progress):
                text, share = run.show(update)
                yield {**self.view.message(text, progress=share), self.ui.results: {"items": run.items}}
            else:
                yield self.view.message(_place(update) if isinstance(update, int) else update)
        finished = run.finished
        if finished:
            run.session.shown = finished[0]["key"]
        shown = await asyncio.to_thread(self.view.session, run.session) if finished else {}
        try:
            note = self.view.message(run.result())
        except Exception as error:
            note = self.view.message(error_message(error), alert=True)
        results = {"items": finished, "chosen": run.session.shown if finished else None}
        yield {self.ui.results: results, **note, **shown, **self.view.idle()}


def _place(ahead: int) -> str:
    return f"Waiting: {ahead} edit{'s' * (ahead != 1)} ahead of yours …" if ahead else "Starting …"
