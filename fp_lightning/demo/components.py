"""What Gradio's own components cannot do: a canvas, pictures without files, a tree, attention under a pointer.

Each is a `gr.HTML` with the template, style and script of static/NAME.{html,css,js}, whose value is JSON.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import Any

import gradio as gr


def canvas(segment: Callable[[Any], dict[str, Any]] | None, **options: Any) -> gr.HTML:
    """The photo and what is drawn on it. The value is the drawing, with the key of its photo.

    Its prop `photo` is what is opened: {"key", "src", "outlines", "width", "height", "drawing", "replace", "mode",
    "untrained"}. `drawing` is taken where the browser has none of that key, or in its place with `replace`;
    `untrained` says of a mode what to expect of it. A file that is dropped on it, or pasted, is a `drop` event with
    "path".

    Args:
        segment: {"key": of the photo, "at": [x, y]} → {"outline"} or {"error"}; None for no such tool.
    """
    served = {} if segment is None else {"server_functions": [segment]}
    return _scripted("canvas", photo=None, segmenter=segment is not None, **served, **options)


def pictures(value: Any, height: int, about: str, follow: bool = False, **options: Any) -> gr.HTML:
    """A row of pictures of which one is chosen: {"items": [{"key", "src", "caption"}], "chosen"}.

    Args:
        height: of a picture in pixels.
        about: what they are, for those who do not see them.
        follow: the first picture of new ones is scrolled to where it can be seen.
    """
    return _scripted("pictures", value, height=height, about=about, follow=follow, **options)


def tree(**options: Any) -> gr.HTML:
    """The history: {"nodes": [{"key", "parent", "thumb", "caption"}], "shown", "base"}."""
    return _scripted("tree", **options)


def matches(**options: Any) -> gr.HTML:
    """Where each place of an edit comes from, see static/matches.js."""
    return _scripted("matches", **options)


def _scripted(name: str, value: Any = None, **options: Any) -> gr.HTML:
    def part(end: str) -> str:
        return files("fp_lightning.demo").joinpath("static", f"{name}.{end}").read_text("utf-8")

    return gr.HTML(
        value,
        html_template=part("html"),
        css_template=part("css"),
        js_on_load=part("js"),
        apply_default_css=False,
        **options,
    )
