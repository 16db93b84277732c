"""The page: one layout, and what happens on each click. State lives in `Works`; the browser holds its token."""

from __future__ import annotations

import asyncio
import inspect
import secrets
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from functools import wraps
from html import escape
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image

from fp_lightning.demo.api import add_api
from fp_lightning.demo.components import canvas, matches, pictures, tree
from fp_lightning.demo.desk import Desk
from fp_lightning.demo.drawing import signals_of
from fp_lightning.demo.examples import Example, examples
from fp_lightning.demo.pictures import SHOWN, data_url, shrunk, thumbnail
from fp_lightning.demo.run import EditRun
from fp_lightning.demo.segmenter import Segmenter
from fp_lightning.demo.studio import Step, Studio, sentence
from fp_lightning.demo.uploads import Uploads
from fp_lightning.demo.work import Node, Work, Works
from fp_lightning.edits import Edit, read_edit
from fp_lightning.errors import InputError
from fp_lightning.images import drags
from fp_lightning.sampler import Sampling
from fp_lightning.signals.sketch import outlines
from fp_lightning.solvers import SOLVERS

MOST_CANDIDATES = 4
MODES = {"sketch": "sketch", "drag": "points", "cut": "coarse"}  # of the canvas, and their signals
OUTLINES = (0, 200, 255)  # RGB of the underlay
Updates = dict[Any, Any]


class Page:
    """Builds the page. Its components are attributes, so that handlers return updates by component.

    Args:
        studio, desk, works, uploads: what the page is a face of.
        segmenter: finds what is under a click; None for no such tool.
    """

    def __init__(
        self, studio: Studio, desk: Desk, works: Works, uploads: Uploads, segmenter: Segmenter | None = None
    ) -> None:
        self.studio, self.desk, self.works, self.uploads = studio, desk, works, uploads
        self.runs: dict[str, EditRun] = {}  # under way, by token
        self.blocks = gr.Blocks(title="FramePainter", analytics_enabled=False, delete_cache=(600, 3600))
        with self.blocks:
            self._lay_out(segmenter)
            self._connect()
            add_api(studio, desk, uploads)

    # ---- layout ----------------------------------------------------------------------------------------------------
    def _lay_out(self, segmenter: Segmenter | None) -> None:
        default = Sampling()
        self.token = gr.BrowserState(None, storage_key="fp_lightning", secret="fp_lightning")
        gr.Markdown(
            "## FramePainter\nDraw what shall change, pull it, or cut it out and move it; then press **Edit**. "
            "Signals can be combined."
        )
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                self.canvas = canvas(self._segment(segmenter), elem_id="canvas")
                with gr.Row():
                    self.run = gr.Button("Edit", variant="primary", elem_id="edit", scale=3, min_width=120)
                    self.stop = gr.Button("Cancel", elem_id="cancel", interactive=False, scale=1, min_width=80)
                self.status = gr.HTML(_said("Ready."), elem_id="status")
                with gr.Row():
                    self.upload = gr.UploadButton(
                        "Open a photo, or a saved edit", file_types=["image", ".json"], elem_id="upload", size="sm"
                    )
                items = [
                    {"key": str(i), "src": thumbnail(e.photo), "caption": e.caption} for i, e in enumerate(examples())
                ]
                self.examples = pictures({"items": items}, height=64, about="Examples", elem_id="examples")
            with gr.Column(scale=2, min_width=300):
                self.results = pictures(None, height=120, about="Candidates", elem_id="results")
                self.compare = gr.ImageSlider(
                    label="Before and after",
                    interactive=False,
                    visible=False,
                    elem_id="compare",
                    buttons=["fullscreen"],
                )
                with gr.Row():
                    self.go_on = gr.Button(
                        "Continue from this", elem_id="continue", size="sm", interactive=False, min_width=120
                    )
                    self.recall = gr.Button(
                        "Its drawing again", elem_id="recall", size="sm", interactive=False, min_width=120
                    )
                    self.image_file = gr.DownloadButton(
                        "Image", elem_id="image", size="sm", interactive=False, min_width=120
                    )
                    self.edit_file = gr.DownloadButton(
                        "Edit as JSON", elem_id="json", size="sm", interactive=False, min_width=120
                    )
                with gr.Accordion("Where it comes from", open=False, elem_id="where"):
                    self.look = gr.Button("Look", size="sm", elem_id="look", interactive=False)
                    self.lookup = matches(elem_id="lookup")
                with gr.Accordion("History", open=True, elem_id="history"):
                    self.tree = tree(elem_id="tree")
                with gr.Accordion("Settings", elem_id="settings"):
                    self.candidates = gr.Slider(1, MOST_CANDIDATES, 1, step=1, label="Candidates")
                    with gr.Row(equal_height=True):
                        self.seed = gr.Number(0, precision=0, minimum=0, maximum=2**53, label="Seed", min_width=120)
                        self.new_seed = gr.Button("New seed", size="sm", elem_id="new-seed", min_width=90)
                    self.steps = gr.Slider(1, 100, default.num_inference_steps, step=1, label="Steps")
                    self.control = gr.Slider(0, 2, default.control_scale, step=0.05, label="Control scale")
                    self.guidance = gr.Slider(1, 10, default.guidance_scale, step=0.1, label="Guidance")
                    self.solver = gr.Dropdown(list(SOLVERS), value=default.solver, label="Solver")
                    with gr.Accordion("More", open=False):
                        self.keep = gr.Checkbox(False, label="Keep the photo where the edit changes nothing")
                        self.reuse = gr.Slider(
                            1,
                            4,
                            default.reuse,
                            step=1,
                            label="Deep features every n-th step; above 1 approximates",
                        )
                        self.interval = gr.Textbox(
                            "", label="Guide noise levels from, to", placeholder="all; or for example 0.2, 40"
                        )
        self.settings = [
            self.steps, self.guidance, self.control, self.solver, self.keep, self.reuse, self.interval, self.seed,
        ]  # fmt: skip

    def _connect(self) -> None:
        view = [
            self.compare,
            self.tree,
            self.image_file,
            self.edit_file,
            self.lookup,
            self.go_on,
            self.recall,
            self.look,
        ]
        shown = [*view, self.results, self.status]
        everything = [*shown, self.token, self.canvas, self.candidates, *self.settings, self.run, self.stop]
        options: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}

        def on(event: Callable[..., Any], handler: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> None:
            event(self._guarded(handler), inputs, outputs, api_name=f"page_{handler.__name__}", **options)

        on(self.blocks.load, self.opened, [self.token], everything)
        on(self.upload.upload, self.uploaded, [self.token, self.upload], everything)
        on(self.canvas.drop, self.dropped, [self.token], everything)
        on(self.examples.select, self.example_chosen, [self.token, self.examples], everything)
        on(self.run.click, self.edit, [self.token, self.canvas, self.candidates, *self.settings], everything)
        on(self.stop.click, self.cancel, [self.token], shown)
        on(self.results.select, self.chosen, [self.token, self.results], shown)
        on(self.tree.select, self.node_chosen, [self.token, self.tree], shown)
        on(self.go_on.click, self.continued, [self.token], everything)
        on(self.recall.click, self.recalled, [self.token], everything)
        on(self.new_seed.click, self.seeded, [], [self.seed, self.status])
        on(self.look.click, self.looked, [self.token], [self.lookup, self.status])

    def _guarded(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        """The handler, whose failures are sentences on the page; nothing else on it changes."""
        if inspect.isasyncgenfunction(handler):

            @wraps(handler)
            async def several(*inputs: Any) -> AsyncIterator[Updates]:
                try:
                    async for updates in handler(*inputs):
                        yield updates
                except Exception as error:
                    yield {self.status: _said(sentence(error), alert=True), **self._idle()}

            return several

        @wraps(handler)
        def one(*inputs: Any) -> Updates:
            try:
                return handler(*inputs)
            except Exception as error:
                return {self.status: _said(sentence(error), alert=True)}

        return one

    # ---- what is opened ----------------------------------------------------------------------------------------------
    async def opened(self, token: Any) -> AsyncIterator[Updates]:
        """The page is loaded: its work is shown, an edit under way followed; or new work with the first example."""
        work = self.works.find(token)
        if work is None:
            work = self.works.new()
            await asyncio.to_thread(self._begin, work, examples()[0])
        photo = await asyncio.to_thread(self._canvas, work.node(work.base))
        yield {self.token: work.token, **photo, **await asyncio.to_thread(self._view, work), **self._idle()}
        if work.token in self.runs:
            async for updates in self._followed(self.runs[work.token]):
                yield updates

    def uploaded(self, token: Any, path: str) -> Updates:
        """A photo or a saved edit was sent."""
        work, thing = self.works.open(token), self.uploads.photo_or_edit(path)
        if isinstance(thing, Edit):
            if thing.drawing is None:
                raise InputError(
                    "this edit was not drawn on a page, so there is no drawing to show; `predict` and the pipeline "
                    "can make it again"
                )
            signals_of(thing.drawing, thing.image)  # raises what is wrong with it
            node = work.start(thing.image, "photo", thing.drawing)
            return {**self._canvas(node), **self._settings(thing), **self._view(work), self.results: {"items": []}}
        node = work.start(thing, "photo")
        note = f"Opened, {thing.width} × {thing.height} pixels. The model works at {self._size()}."
        return {**self._canvas(node), **self._view(work), self.results: {"items": []}, self.status: _said(note)}

    def dropped(self, token: Any, event: gr.EventData) -> Updates:
        """A photo or a saved edit was dropped on the canvas, or pasted."""
        return self.uploaded(token, str(event.path))

    def _segment(self, segmenter: Segmenter | None) -> Callable[[Any], dict[str, Any]] | None:
        """What the canvas asks at a click."""
        if segmenter is None:
            return None

        def segment(click: Any) -> dict[str, Any]:
            try:
                node = self.works.node(click["key"])
                ((x, y),) = drags([[*click["at"], 0, 0]], node.size, node.size, "the click")[:, :2].tolist()
                job = self.desk.submit(f"click {node.key}", lambda job: segmenter.find(node.open(), x, y))
                return {"outline": job.future.result()}
            except Exception as error:
                return {"error": sentence(error)}

        return segment

    def example_chosen(self, token: Any, value: Any) -> Updates:
        """An example was pressed."""
        work, index = self.works.open(token), str((value or {}).get("chosen"))
        if index not in map(str, range(len(examples()))):
            raise InputError("there is no such example; choose one that is shown")
        node = self._begin(work, examples()[int(index)])
        return {**self._canvas(node, replace=True), **self._view(work), self.results: {"items": []}}

    def _begin(self, work: Work, example: Example) -> Node:
        """The example as the base; once it is in the history, that one."""
        for node in work.nodes.values():
            if node.parent is None and node.caption == example.caption:
                work.base = work.shown = node.key
                return node
        return work.start(example.photo, example.caption, example.drawing)

    def continued(self, token: Any) -> Updates:
        """The shown image goes onto the canvas."""
        work = self.works.open(token)
        work.base = work.shown
        note = "This result is on the canvas; what you draw now changes it."
        return {**self._canvas(work.node(work.base)), **self._view(work), self.status: _said(note)}

    def recalled(self, token: Any) -> Updates:
        """The photo, drawing and settings of the shown edit come back."""
        work = self.works.open(token)
        node = work.node(work.shown)
        if node.edit is None or node.parent is None:
            raise InputError("this is a photo, it was not drawn; choose an edit")
        edit, base = read_edit(node.edit), work.node(node.parent)
        work.base = base.key
        return {
            **self._canvas(base, edit.drawing, replace=True),
            **self._settings(edit),
            **self._view(work),
            self.status: _said("The drawing and its settings are back; Undo returns to yours."),
        }

    def seeded(self) -> Updates:
        """New seed was pressed."""
        return {self.seed: secrets.randbelow(2**31)}

    # ---- what is shown -----------------------------------------------------------------------------------------------
    def chosen(self, token: Any, value: Any) -> Updates:
        """A candidate was pressed."""
        return self._shown(token, (value or {}).get("chosen"))

    def node_chosen(self, token: Any, value: Any) -> Updates:
        """An image of the history was pressed."""
        return self._shown(token, (value or {}).get("shown"))

    def _shown(self, token: Any, key: Any) -> Updates:
        work = self.works.open(token)
        work.shown = work.node(key).key
        return self._view(work)

    def _view(self, work: Work) -> Updates:
        """All that depends on which image is shown."""
        node = work.node(work.shown)
        parent = work.nodes.get(node.parent) if node.parent else None
        edited = node.edit is not None
        nodes = [
            {
                "key": n.key,
                "parent": n.parent if n.parent in work.nodes else None,
                "thumb": n.thumb,
                "caption": n.caption,
            }
            for n in work.nodes.values()
        ]
        pair = (shrunk(parent.open(), SHOWN), shrunk(node.open(), SHOWN)) if parent and edited else None
        return {
            self.compare: gr.update(value=pair, visible=pair is not None),
            self.tree: {"nodes": nodes, "shown": work.shown, "base": work.base},
            self.image_file: gr.update(value=str(node.image), interactive=True),
            self.edit_file: gr.update(value=str(node.edit) if node.edit else None, interactive=edited),
            self.lookup: None,
            self.go_on: gr.update(interactive=work.shown != work.base),
            self.recall: gr.update(interactive=edited),
            self.look: gr.update(interactive=edited),
        }

    def _canvas(self, node: Node, drawing: Any = None, replace: bool = False) -> Updates:
        """The canvas with an image, and with a drawing where the browser has none of it, or in its place."""
        image = node.open()
        small = shrunk(image, SHOWN)
        if drawing is None and node.edit is None:
            drawing = node.drawing
        photo = {
            "key": node.key,
            "opened": time.monotonic_ns(),  # the same photo again is a change, too
            "src": data_url(small),
            "outlines": _underlay(small),
            "width": image.width,
            "height": image.height,
            "drawing": drawing,
            "replace": replace,
            "mode": _mode(drawing),
            "untrained": self._untrained(),
        }
        return {self.canvas: gr.update(photo=photo)}

    def _untrained(self) -> dict[str, str]:
        """What to expect of the modes that the model was not trained on."""
        known = self.studio.signals
        return {
            mode: f"This model was not trained on it ({signal}): what it has not learnt it will not follow."
            for mode, signal in MODES.items()
            if known is not None and signal not in known
        }

    def _size(self) -> str:
        height, width = self.studio.pipe.config.size
        return f"{width} × {height}"

    def _idle(self) -> Updates:
        return {self.run: gr.update(interactive=True), self.stop: gr.update(interactive=False)}

    # ---- edits -------------------------------------------------------------------------------------------------------
    async def edit(self, token: Any, drawing: Any, candidates: Any, *settings: Any) -> AsyncIterator[Updates]:
        """Edit was pressed: waits in the line, tells every step, ends with the candidates in the history."""
        work = self.works.open(token)
        base = work.node((drawing or {}).get("key") or work.base)
        edits = await asyncio.to_thread(self._edits, base, drawing, candidates, settings)
        run = self.runs[work.token] = EditRun(self.studio, self.desk, work, base.key, edits)
        run.job.future.add_done_callback(lambda _: self.runs.pop(work.token, None))
        async for updates in self._followed(run):
            yield updates

    async def _followed(self, run: EditRun) -> AsyncIterator[Updates]:
        """How a run comes along, until its candidates are shown."""
        busy = {self.run: gr.update(interactive=False), self.stop: gr.update(interactive=True)}
        yield {self.status: _said("Waiting …"), self.results: {"items": run.items}, **busy}
        async for news in self.desk.watch(run.job):
            if isinstance(news, Step):
                text, share = run.see(news)
                yield {self.status: _said(text, share=share), self.results: {"items": run.items}}
            else:
                yield {self.status: _said(_place(news))}
        made = run.made
        view = await asyncio.to_thread(self._view, run.work) if made else {}
        yield {self.results: {"items": made, "chosen": made[-1]["key"] if made else None}, **view, **self._idle()}
        yield {self.status: _said(run.result())}

    def _edits(self, base: Node, drawing: Any, candidates: Any, settings: tuple[Any, ...]) -> list[Edit]:
        """What was asked for, checked: an edit for each candidate."""
        steps, guidance, control, solver, keep, reuse, interval, seed = settings
        if type(candidates) is not int or not 1 <= candidates <= MOST_CANDIDATES:
            raise InputError(f"candidates must be 1 to {MOST_CANDIDATES}, got {candidates}")
        if type(seed) is not int or not 0 <= seed <= 2**53:
            raise InputError(f"the seed must be a whole number from 0 to 2^53, got {seed}")
        photo = base.open()
        signals = signals_of(drawing, photo)
        given = {
            "num_inference_steps": steps, "guidance_scale": guidance, "control_scale": control, "solver": solver,
            "reuse": reuse, "guidance_interval": _interval(interval), "keep_unedited": keep,
        }  # fmt: skip
        kept = {name: value for name, value in drawing.items() if name != "key"}
        return [
            self.studio.prepared(Edit(photo, **signals, settings=given, seed=seed + number, drawing=kept))
            for number in range(candidates)
        ]

    def _settings(self, edit: Edit) -> Updates:
        """The controls as an edit had them."""
        default = vars(Sampling()) | {"keep_unedited": False}
        given = default | dict(edit.settings)
        interval = given["guidance_interval"]
        return {
            self.candidates: 1, self.seed: edit.seed, self.steps: given["num_inference_steps"],
            self.guidance: given["guidance_scale"], self.control: given["control_scale"], self.solver: given["solver"],
            self.keep: given["keep_unedited"], self.reuse: given["reuse"],
            self.interval: "" if interval is None else ", ".join(f"{level:g}" for level in interval),
        }  # fmt: skip

    def cancel(self, token: Any) -> Updates:
        """Cancel was pressed."""
        count = self.desk.cancel(*self.desk.of(self.works.open(token).token))
        return {self.status: _said("Cancelling …" if count else "There is nothing to cancel.")}

    async def looked(self, token: Any) -> AsyncIterator[Updates]:
        """Look was pressed: where each place of the shown edit comes from."""
        work = self.works.open(token)
        node = work.node(work.shown)
        saved = node.edit
        if saved is None:
            raise InputError("this is a photo; choose an edit")
        edit, result = await asyncio.to_thread(lambda: (read_edit(saved), node.open()))
        yield {self.status: _said("Looking …")}
        job = self.desk.submit(work.token, lambda job: self.studio.matches(edit, result))
        async for _ in self.desk.watch(job):
            pass
        found = job.future.result()
        if found is None:
            raise InputError("this model has no attention between photo and edit")
        maps = (found.maps / found.maps.amax(1, keepdim=True) * 255).round().to(torch.uint8)
        value = {
            "source": data_url(shrunk(edit.image, 512)),
            "edit": data_url(shrunk(result, 512)),
            "grid": list(found.grid),
            "best": found.best.tolist(),
            "cells": list(found.cells),
            "maps": b64encode(maps.numpy().tobytes()).decode(),
        }
        yield {self.lookup: value, self.status: _said("Point at the edit to see where it comes from.")}


def _said(text: str, alert: bool = False, share: float | None = None) -> str:
    """A sentence for the status line, with a bar where work is under way."""
    bar = "" if share is None else f'<progress value="{share:.3f}" style="width: 100%"></progress>'
    role = 'role="alert" style="color: var(--error-text-color, #b00)"' if alert else 'role="status"'
    return f"<div {role}>{escape(text)}{bar}</div>"


def _place(ahead: int) -> str:
    return f"Waiting, {ahead} edit{'s' * (ahead != 1)} before yours …" if ahead else "Starting …"


def _mode(drawing: Any) -> str | None:
    """The canvas mode in which a drawing was mostly made."""
    kinds = {"sketch": "strokes", "drag": "arrows", "cut": "pieces"}
    return next((mode for mode, kind in kinds.items() if isinstance(drawing, dict) and drawing.get(kind)), None)


def _interval(text: Any) -> tuple[float, float] | None:
    """ "0.2, 40" → (0.2, 40.0); nothing → None."""
    words = str(text or "").replace(";", ",").split(",")
    if words == [""]:
        return None
    try:
        low, high = (float(word) for word in words)
    except ValueError as error:
        raise InputError(f"noise levels to guide must be two numbers, such as 0.2, 40; got {str(text)[:40]}") from error
    return low, high


def _underlay(photo: Image.Image) -> str:
    """The photo's outlines on a transparent sheet, as a data URL."""
    drawn = outlines(torch.from_numpy(np.array(photo)).movedim(-1, 0))[0].numpy().astype(np.uint8)
    sheet = np.zeros((*drawn.shape, 4), np.uint8)
    sheet[drawn > 0] = (*OUTLINES, 255)
    return data_url(Image.fromarray(sheet))
