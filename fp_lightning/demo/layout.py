"""What is on the page: components and their places, no behaviour."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

from fp_lightning.demo.components import canvas, matches, pictures, tree
from fp_lightning.demo.controls import MOST_CANDIDATES, Controls
from fp_lightning.demo.examples import examples
from fp_lightning.demo.pictures import thumbnail
from fp_lightning.demo.studio import MOST_STEPS
from fp_lightning.inference.solvers import SOLVERS


class Layout:
    """The components of the page, in the `gr.Blocks` that is open.

    Args:
        segment: see `canvas`.
    """

    def __init__(self, segment: Callable[[Any], dict[str, Any]] | None) -> None:
        default = Controls()
        self.token = gr.BrowserState(None, storage_key="fp_lightning", secret="fp_lightning")
        gr.Markdown(
            "## FramePainter\nDraw what shall change, pull it, or cut it out and move it; then press **Edit**. "
            "Signals can be combined."
        )
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                self.canvas = canvas(segment, elem_id="canvas")
                with gr.Row():
                    self.run = gr.Button("Edit", variant="primary", elem_id="edit", scale=3, min_width=120)
                    self.stop = gr.Button("Cancel", elem_id="cancel", interactive=False, scale=1, min_width=80)
                self.status = gr.HTML(said("Ready."), elem_id="status")
                with gr.Row():
                    self.upload = gr.UploadButton(
                        "Open a photo, or a saved edit", file_types=["image", ".json"], elem_id="upload", size="sm"
                    )
                self.examples = pictures(example_pictures(), height=64, about="Examples", elem_id="examples")
            with gr.Column(scale=2, min_width=300):
                self.results = pictures(None, height=150, about="Candidates", follow=True, elem_id="results")
                self.compare = gr.ImageSlider(
                    label="Before and after",
                    interactive=False,
                    visible=False,
                    elem_id="compare",
                    buttons=["fullscreen"],
                    slider_position=30,
                )
                with gr.Row():
                    small: dict[str, Any] = {"size": "sm", "interactive": False, "min_width": 120}
                    self.go_on = gr.Button("Continue from this", elem_id="continue", **small)
                    self.recall = gr.Button("Its drawing again", elem_id="recall", **small)
                    self.image_file = gr.DownloadButton("Image", elem_id="image", **small)
                    self.edit_file = gr.DownloadButton("Edit as JSON", elem_id="json", **small)
                with gr.Accordion("Where it comes from", open=False, elem_id="where"):
                    self.look = gr.Button("Look", elem_id="look", **small)
                    self.lookup = matches(elem_id="lookup")
                with gr.Accordion("History", open=True, elem_id="history"):
                    self.tree = tree(elem_id="tree")
                with gr.Accordion("Settings", elem_id="settings"):
                    self.candidates = gr.Slider(1, MOST_CANDIDATES, default.candidates, step=1, label="Candidates")
                    with gr.Row(equal_height=True):
                        self.seed = gr.Number(default.seed, precision=0, label="Seed", min_width=120)
                        self.new_seed = gr.Button("New seed", size="sm", elem_id="new-seed", min_width=90)
                    self.steps = gr.Slider(1, MOST_STEPS, default.steps, step=1, label="Steps")
                    self.control = gr.Slider(0, 2, default.control, step=0.05, label="Control scale")
                    self.guidance = gr.Slider(1, 10, default.guidance, step=0.1, label="Guidance")
                    self.solver = gr.Dropdown(list(SOLVERS), value=default.solver, label="Solver")
                    with gr.Accordion("More", open=False):
                        self.keep = gr.Checkbox(default.keep, label="Keep the photo where the edit changes nothing")
                        about = "Deep features every n-th step; above 1 approximates"
                        self.reuse = gr.Slider(1, 4, default.reuse, step=1, label=about)
                        about, words = "Guide noise levels from, to", "all; or for example 0.2, 40"
                        self.interval = gr.Textbox(default.interval, label=about, placeholder=words)
        self.controls = [  # in the order of `Controls`
            self.candidates, self.seed, self.steps, self.control, self.guidance, self.solver,
            self.keep, self.reuse, self.interval,
        ]  # fmt: skip


def example_pictures() -> dict[str, Any]:
    """The examples for a row of pictures, none of them chosen."""
    items = [{"key": str(i), "src": thumbnail(e.photo), "caption": e.caption} for i, e in enumerate(examples())]
    return {"items": items}


def said(text: str, alert: bool = False, share: float | None = None) -> str:
    """A sentence for the status line, with a bar where work is under way."""
    style = "width: 100%; accent-color: var(--color-accent)"
    bar = "" if share is None else f'<progress value="{share:.3f}" style="{style}"></progress>'
    role = 'role="alert" style="color: var(--error-text-color, #b00)"' if alert else 'role="status"'
    return f"<div {role}>{escape(text)}{bar}</div>"
