"""The page: one layout, and what happens on each click. State lives in `Works`; the browser holds its token."""

from __future__ import annotations

import asyncio
import inspect
import secrets
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from functools import wraps
from typing import Any

import gradio as gr
import torch

from fp_lightning.demo.api import add_api
from fp_lightning.demo.controls import Controls
from fp_lightning.demo.desk import Desk
from fp_lightning.demo.drawing import signals_of
from fp_lightning.demo.examples import Example, examples
from fp_lightning.demo.layout import Layout, example_pictures, said
from fp_lightning.demo.pictures import SHOWN, data_url, shrunk
from fp_lightning.demo.run import EditRun
from fp_lightning.demo.segmenter import Segmenter
from fp_lightning.demo.sheet import sheet
from fp_lightning.demo.studio import Step, Studio, sentence
from fp_lightning.demo.uploads import Uploads
from fp_lightning.demo.work import Node, Work, Works
from fp_lightning.errors import InputError
from fp_lightning.media.edits import Edit, read_edit
from fp_lightning.media.images import drags

Updates = dict[Any, Any]


class Page:
    """The page: its layout `ui`, and what happens on each event. Handlers return updates by component.

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
            self.ui = Layout(self._segment(segmenter))
            self._connect()
            add_api(studio, desk, uploads)

    def _connect(self) -> None:
        view = [
            self.ui.compare,
            self.ui.tree,
            self.ui.image_file,
            self.ui.edit_file,
            self.ui.lookup,
            self.ui.go_on,
            self.ui.recall,
            self.ui.look,
        ]
        shown = [*view, self.ui.results, self.ui.status]
        everything = [
            *shown,
            self.ui.token,
            self.ui.canvas,
            self.ui.examples,
            *self.ui.controls,
            self.ui.run,
            self.ui.stop,
        ]
        options: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}

        def on(event: Callable[..., Any], handler: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> None:
            event(self._guarded(handler), inputs, outputs, api_name=f"page_{handler.__name__}", **options)

        on(self.blocks.load, self.opened, [self.ui.token], everything)
        on(self.ui.upload.upload, self.uploaded, [self.ui.token, self.ui.upload], everything)
        on(self.ui.canvas.drop, self.dropped, [self.ui.token], everything)
        on(self.ui.examples.select, self.example_chosen, [self.ui.token, self.ui.examples], everything)
        on(self.ui.run.click, self.edit, [self.ui.token, self.ui.canvas, *self.ui.controls], everything)
        on(self.ui.stop.click, self.cancel, [self.ui.token], shown)
        on(self.ui.results.select, self.chosen, [self.ui.token, self.ui.results], shown)
        on(self.ui.tree.select, self.node_chosen, [self.ui.token, self.ui.tree], shown)
        on(self.ui.go_on.click, self.continued, [self.ui.token], everything)
        on(self.ui.recall.click, self.recalled, [self.ui.token], everything)
        on(self.ui.new_seed.click, self.seeded, [], [self.ui.seed, self.ui.status])
        on(self.ui.look.click, self.looked, [self.ui.token], [self.ui.lookup, self.ui.status])

    def _guarded(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        """The handler, whose failures are sentences on the page; nothing else on it changes."""
        if inspect.isasyncgenfunction(handler):

            @wraps(handler)
            async def several(*inputs: Any) -> AsyncIterator[Updates]:
                try:
                    async for updates in handler(*inputs):
                        yield updates
                except Exception as error:
                    yield {self.ui.status: said(sentence(error), alert=True), **self._idle()}

            return several

        @wraps(handler)
        def one(*inputs: Any) -> Updates:
            try:
                return handler(*inputs)
            except Exception as error:
                return {self.ui.status: said(sentence(error), alert=True)}

        return one

    # ---- what is opened ----------------------------------------------------------------------------------------------
    async def opened(self, token: Any) -> AsyncIterator[Updates]:
        """The page is loaded: its work is shown, an edit under way followed; or new work with the first example."""
        work = self.works.find(token)
        if work is None:
            work = self.works.new()
            await asyncio.to_thread(self._begin, work, examples()[0])
        photo = await asyncio.to_thread(self._canvas, work.node(work.base))
        view = await asyncio.to_thread(self._view, work)
        yield {self.ui.token: work.token, **photo, **view, **self._controls(work.controls), **self._idle()}
        if work.token in self.runs:
            async for updates in self._followed(self.runs[work.token]):
                yield updates

    def uploaded(self, token: Any, path: str) -> Updates:
        """A photo or a saved edit was sent."""
        work, (name, thing) = self.works.open(token), self.uploads.photo_or_edit(path)
        if isinstance(thing, Edit):
            if thing.drawing is None:
                raise InputError(
                    "this edit was not drawn on a page, so there is no drawing to show; `predict` and the pipeline "
                    "can make it again"
                )
            signals_of(thing.drawing, thing.image)  # raises what is wrong with it
            node, more = work.start(thing.image, name, thing.drawing), self._controls(Controls.of(thing))
            note = f"{name} is opened with its drawing and its settings."
        else:
            node, more = work.start(thing, name), {self.ui.examples: example_pictures()}
            note = f"{name} is opened, {thing.width} × {thing.height} pixels. The model works at {self._size()}."
        return {**self._new(work, node, note), **more}

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
        return self._new(work, node, "The example is opened with its drawing; press Edit.", replace=True)

    def _new(self, work: Work, node: Node, note: str, replace: bool = False) -> Updates:
        """Another photo is on the canvas."""
        photo = self._canvas(node, replace=replace)
        return {**photo, **self._view(work), self.ui.results: {"items": []}, self.ui.status: said(note)}

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
        note = "It is on the canvas now; what you draw changes it."
        return {**self._canvas(work.node(work.base)), **self._view(work), self.ui.status: said(note)}

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
            **self._controls(Controls.of(edit)),
            **self._view(work),
            self.ui.status: said("The drawing and its settings are back; Undo returns to yours."),
        }

    def seeded(self) -> Updates:
        """New seed was pressed."""
        return {self.ui.seed: secrets.randbelow(2**31)}

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
        return {**self._view(work), self.ui.status: said(work.node(key).caption)}

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
            self.ui.compare: gr.update(value=pair, visible=pair is not None),
            self.ui.tree: {"nodes": nodes, "shown": work.shown, "base": work.base},
            self.ui.image_file: gr.update(value=str(node.image) if edited else None, interactive=edited),
            self.ui.edit_file: gr.update(value=str(node.edit) if node.edit else None, interactive=edited),
            self.ui.lookup: None,
            self.ui.go_on: gr.update(interactive=work.shown != work.base),
            self.ui.recall: gr.update(interactive=edited),
            self.ui.look: gr.update(interactive=edited),
        }

    def _canvas(self, node: Node, drawing: Any = None, replace: bool = False) -> Updates:
        """An image goes onto the canvas, see `sheet`."""
        return {self.ui.canvas: gr.update(photo=sheet(node, drawing, replace, self.studio.signals))}

    def _size(self) -> str:
        height, width = self.studio.pipe.config.size
        return f"{width} × {height}"

    def _busy(self) -> Updates:
        return {self.ui.run: gr.update(interactive=False), self.ui.stop: gr.update(interactive=True)}

    def _idle(self) -> Updates:
        return {self.ui.run: gr.update(interactive=True), self.ui.stop: gr.update(interactive=False)}

    # ---- edits -------------------------------------------------------------------------------------------------------
    async def edit(self, token: Any, drawing: Any, *values: Any) -> AsyncIterator[Updates]:
        """Edit was pressed: waits in the line, tells every step, ends with the candidates in the history.

        `values` are those of the controls.
        """
        work = self.works.open(token)
        base = work.node((drawing or {}).get("key") or work.base)
        yield {self.ui.status: said("Preparing …"), **self._busy()}
        edits = await asyncio.to_thread(self._edits, base, drawing, Controls(*values))
        work.controls = Controls(*values)
        run = self.runs[work.token] = EditRun(self.studio, self.desk, work, base.key, edits)
        run.job.future.add_done_callback(lambda _: self._forget(run))
        async for updates in self._followed(run):
            yield updates

    def _forget(self, run: EditRun) -> None:
        """A run has ended; another tab may have begun a later one."""
        if self.runs.get(run.work.token) is run:
            del self.runs[run.work.token]

    async def _followed(self, run: EditRun) -> AsyncIterator[Updates]:
        """How a run comes along, until its candidates are shown."""
        yield {self.ui.status: said("Waiting …"), self.ui.results: {"items": run.items}, **self._busy()}
        async for news in self.desk.watch(run.job):
            if isinstance(news, Step):
                text, share = run.see(news)
                yield {self.ui.status: said(text, share=share), self.ui.results: {"items": run.items}}
            else:
                yield {self.ui.status: said(_place(news) if isinstance(news, int) else news)}
        made = run.made
        if made:
            run.work.shown = made[0]["key"]
        view = await asyncio.to_thread(self._view, run.work) if made else {}
        try:
            note = said(run.result())
        except Exception as error:
            note = said(sentence(error), alert=True)
        results = {"items": made, "chosen": run.work.shown if made else None}
        yield {self.ui.results: results, self.ui.status: note, **view, **self._idle()}

    def _edits(self, base: Node, drawing: Any, controls: Controls) -> list[Edit]:
        """What was asked for, checked: an edit for each candidate."""
        seeds, settings, photo = controls.seeds(), controls.settings(), base.open()
        signals = signals_of(drawing, photo)
        kept = {name: value for name, value in drawing.items() if name != "key"}
        return [
            self.studio.prepared(Edit(photo, **signals, settings=settings, seed=seed, drawing=kept)) for seed in seeds
        ]

    def _controls(self, controls: Controls) -> Updates:
        return dict(zip(self.ui.controls, vars(controls).values(), strict=True))

    def cancel(self, token: Any) -> Updates:
        """Cancel was pressed."""
        count = self.desk.cancel(*self.desk.of(self.works.open(token).token))
        return {self.ui.status: said("Cancelling …" if count else "There is nothing to cancel.")}

    async def looked(self, token: Any) -> AsyncIterator[Updates]:
        """Look was pressed: where each place of the shown edit comes from."""
        work = self.works.open(token)
        node = work.node(work.shown)
        saved = node.edit
        if saved is None:
            raise InputError("this is a photo; choose an edit")
        edit, result = await asyncio.to_thread(lambda: (read_edit(saved), node.open()))
        yield {self.ui.status: said("Looking …")}
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
        yield {self.ui.lookup: value, self.ui.status: said("Point at the edit to see where it comes from.")}


def _place(ahead: int) -> str:
    return f"Waiting, {ahead} edit{'s' * (ahead != 1)} before yours …" if ahead else "Starting …"
