"""Which handler of the page runs on which event, and which components it may update."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from functools import wraps
from typing import Any

import gradio as gr

from fp_lightning.demo.editing import error_message
from fp_lightning.demo.page import Page
from fp_lightning.demo.view import Updates, View


def connect_events(page: Page) -> None:
    """Connect the events of the page's components to its handlers."""
    ui = page.ui
    shown = [
        ui.compare, ui.tree, ui.image_file, ui.edit_file, ui.matches, ui.continue_edit, ui.restore, ui.find_matches,
        ui.results, ui.status,
    ]  # fmt: skip
    everything = [*shown, ui.token, ui.canvas, ui.examples, *ui.controls, ui.edit, ui.cancel]
    options: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}

    def on(event: Callable[..., Any], handler: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> None:
        event(_guarded(handler, page.view), inputs, outputs, api_name=f"page_{handler.__name__}", **options)

    with page.blocks:
        on(page.blocks.load, page.load, [ui.token], everything)
        on(ui.upload.upload, page.open_file, [ui.token, ui.upload], everything)
        on(ui.canvas.drop, page.open_dropped_file, [ui.token], everything)
        on(ui.examples.select, page.open_example, [ui.token, ui.examples], everything)
        on(ui.edit.click, page.edit, [ui.token, ui.canvas, *ui.controls], everything)
        on(ui.canvas.move, page.edit, [ui.token, ui.canvas, *ui.controls], everything)
        on(ui.cancel.click, page.cancel, [ui.token], shown)
        on(ui.results.select, page.show_candidate, [ui.token, ui.results], shown)
        on(ui.tree.select, page.show_node, [ui.token, ui.tree], shown)
        on(ui.continue_edit.click, page.continue_edit, [ui.token], everything)
        on(ui.restore.click, page.restore_drawing, [ui.token], everything)
        on(ui.new_seed.click, page.new_seed, [], [ui.seed, ui.status])
        for name, button in ui.presets.items():
            on(button.click, page.preset, [gr.State(name)], [ui.steps, ui.guidance, ui.solver, ui.status])
        on(ui.find_matches.click, page.find_matches, [ui.token], [ui.matches, ui.status])


def _guarded(handler: Callable[..., Any], view: View) -> Callable[..., Any]:
    """The handler, with failures shown in the status line; the rest of the page stays as it is."""
    if inspect.isasyncgenfunction(handler):

        @wraps(handler)
        async def stream(*inputs: Any) -> AsyncIterator[Updates]:
            try:
                async for updates in handler(*inputs):
                    yield updates
            except Exception as error:
                yield {**view.message(error_message(error), alert=True), **view.idle()}

        return stream

    @wraps(handler)
    def call(*inputs: Any) -> Updates:
        try:
            return handler(*inputs)
        except Exception as error:
            return view.message(error_message(error), alert=True)

    return call
