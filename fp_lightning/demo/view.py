"""What the page shows, as updates of its components."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import gradio as gr
import torch
from PIL import Image

from fp_lightning.demo.components import message
from fp_lightning.demo.controls import Controls
from fp_lightning.demo.layout import Layout
from fp_lightning.demo.pictures import SHOWN, data_url, shrink
from fp_lightning.demo.session import Session
from fp_lightning.evaluation.correspondence import Matches
from fp_lightning.media.edits import Edit

Updates = dict[Any, Any]
MATCHES_SIDE = 512  # px


class View:
    """Makes updates for the components of `ui`, to be merged and returned to Gradio."""

    def __init__(self, ui: Layout) -> None:
        self.ui = ui

    def session(self, session: Session) -> Updates:
        """Show the session's shown image, and the history."""
        node = session.node(session.shown)
        parent = session.nodes.get(node.parent) if node.parent else None
        edited = node.edit is not None
        nodes = [
            {
                "key": n.key,
                "parent": n.parent if n.parent in session.nodes else None,
                "thumb": n.thumb,
                "caption": n.caption,
            }
            for n in session.nodes.values()
        ]
        pair = (shrink(parent.open(), SHOWN), shrink(node.open(), SHOWN)) if parent and edited else None
        return {
            self.ui.compare: gr.update(value=pair, visible=pair is not None),
            self.ui.tree: {"nodes": nodes, "shown": session.shown, "base": session.base},
            self.ui.image_file: gr.update(value=str(node.image) if edited else None, interactive=edited),
            self.ui.edit_file: gr.update(value=str(node.edit) if node.edit else None, interactive=edited),
            self.ui.matches: None,
            self.ui.continue_edit: gr.update(interactive=session.shown != session.base),
            self.ui.restore: gr.update(interactive=edited),
            self.ui.find_matches: gr.update(interactive=edited),
        }

    def controls(self, controls: Controls) -> Updates:
        """Set the controls."""
        return dict(zip(self.ui.controls, vars(controls).values(), strict=True))

    def message(self, text: str, alert: bool = False, progress: float | None = None) -> Updates:
        """Set the status line."""
        return {self.ui.status: message(text, alert, progress)}

    def busy(self) -> Updates:
        """Allow Cancel, not Edit."""
        return {self.ui.edit: gr.update(interactive=False), self.ui.cancel: gr.update(interactive=True)}

    def idle(self) -> Updates:
        """Allow Edit, not Cancel."""
        return {self.ui.edit: gr.update(interactive=True), self.ui.cancel: gr.update(interactive=False)}

    def matches(self, edit: Edit, result: Image.Image, found: Matches) -> Updates:
        """Show where each place of a result attends to."""
        maps = (found.maps / found.maps.amax(1, keepdim=True) * 255).round().to(torch.uint8)
        value = {
            "source": data_url(shrink(edit.image, MATCHES_SIDE)),
            "edit": data_url(shrink(result, MATCHES_SIDE)),
            "grid": list(found.grid),
            "best": found.best.tolist(),
            "cells": list(found.cells),
            "maps": b64encode(maps.numpy().tobytes()).decode(),
        }
        return {self.ui.matches: value}
