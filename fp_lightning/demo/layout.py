"""The components of the page and their places."""

from __future__ import annotations

from typing import Any, get_args

import gradio as gr

from fp_lightning.demo.components import Asked, canvas, matches, message, pictures, status, tree
from fp_lightning.demo.controls import MOST_CANDIDATES, Controls
from fp_lightning.demo.editing import MOST_STEPS
from fp_lightning.demo.examples import examples
from fp_lightning.demo.pictures import thumbnail
from fp_lightning.inference.sampler import PRESETS
from fp_lightning.inference.solvers import SolverName


class Layout:
    """The components of the page, in the open `gr.Blocks`.

    Args:
        segment, draft: see `canvas`.
        controls: the settings at first.
        most_steps: largest number of steps.
    """

    def __init__(
        self, segment: Asked | None, draft: Asked | None, controls: Controls, most_steps: int = MOST_STEPS
    ) -> None:
        self.token = gr.BrowserState(None, storage_key="fp_lightning", secret="fp_lightning")
        gr.Markdown("## FramePainter\nSketch, drag, or cut and paste. Then press **Edit**. You can combine signals.")
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                self._add_editor(segment, draft)
            with gr.Column(scale=2, min_width=300):
                self._add_viewer()
                with gr.Accordion("Settings", elem_id="settings"):
                    self._add_settings(controls, most_steps)
        self.controls = [  # in the order of `Controls`
            self.candidates, self.seed, self.steps, self.control, self.guidance, self.solver,
            self.keep, self.reuse, self.interval,
        ]  # fmt: skip

    def _add_editor(self, segment: Asked | None, draft: Asked | None) -> None:
        self.canvas = canvas(segment, draft, elem_id="canvas")
        with gr.Row():
            self.edit = gr.Button("Edit", variant="primary", elem_id="edit", scale=3, min_width=120)
            self.cancel = gr.Button("Cancel", elem_id="cancel", interactive=False, scale=1, min_width=80)
        self.status = status(message("Ready."), elem_id="status")
        with gr.Row():
            self.upload = gr.UploadButton(
                "Open a photo or a saved edit", file_types=["image", ".json"], elem_id="upload", size="sm"
            )
        self.examples = pictures(example_pictures(), height=64, about="Examples", elem_id="examples")

    def _add_viewer(self) -> None:
        self.results = pictures(None, height=150, about="Candidates", follow=True, elem_id="results")
        self.compare = gr.ImageSlider(
            label="Before and after",
            interactive=False,
            visible=False,
            elem_id="compare",
            buttons=["fullscreen"],
            slider_position=30,
        )
        small: dict[str, Any] = {"size": "sm", "interactive": False, "min_width": 120}
        with gr.Row():
            self.continue_edit = gr.Button("Continue editing", elem_id="continue", **small)
            self.restore = gr.Button("Restore drawing", elem_id="restore", **small)
        with gr.Row():
            self.image_file = gr.DownloadButton("Download image", elem_id="image", **small)
            self.edit_file = gr.DownloadButton("Download edit", elem_id="json", **small)
        with gr.Accordion("Attention", open=False, elem_id="attention"):
            self.find_matches = gr.Button("Show matches in the photo", elem_id="find-matches", **small)
            self.matches = matches(elem_id="matches")
        with gr.Accordion("History", open=True, elem_id="history"):
            self.tree = tree(elem_id="tree")

    def _add_settings(self, default: Controls, most_steps: int) -> None:
        self.candidates = gr.Slider(1, MOST_CANDIDATES, default.candidates, step=1, label="Candidates")
        with gr.Row():
            self.seed = gr.Number(default.seed, precision=0, label="Seed", min_width=120)
            self.new_seed = gr.Button("New seed", size="sm", elem_id="new-seed", min_width=90)
        with gr.Row():
            self.presets = {
                name: gr.Button(f"Preset: {name}", size="sm", elem_id=f"preset-{name}", min_width=90)
                for name in PRESETS
            }
        self.steps = gr.Slider(1, most_steps, default.steps, step=1, label="Steps")
        self.control = gr.Slider(0, 2, default.control, step=0.05, label="Control scale")
        self.guidance = gr.Slider(1, 10, default.guidance, step=0.1, label="Guidance scale")
        self.solver = gr.Dropdown(list(get_args(SolverName)), value=default.solver, label="Solver")
        self.keep = gr.Checkbox(default.keep, label="Keep unedited pixels", elem_id="keep")
        with gr.Accordion("More", open=False):
            self.reuse = gr.Slider(
                1, 4, default.reuse, step=1, label="Compute deep features every n steps (above 1: faster, approximate)"
            )
            self.interval = gr.Textbox(
                default.interval, label="Guidance interval (noise levels)", placeholder="all, or such as 0.2, 40"
            )


def example_pictures() -> dict[str, Any]:
    """Return the examples as the value of `pictures`, with none chosen."""
    items = [{"key": str(i), "src": thumbnail(e.photo), "caption": e.caption} for i, e in enumerate(examples())]
    return {"items": items}
