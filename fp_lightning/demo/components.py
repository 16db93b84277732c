"""Components that Gradio does not have: a canvas, a status line, pictures without files, a tree, a view of attention.

Each is a `gr.HTML` with the template, style and module static/NAME.{html,css,js}. Its value is JSON. The modules are ES
modules: `script_routes` serves them, and static/load.js imports the one of a component.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

STATIC = Path(__file__).parent / "static"
FOREVER = {"Cache-Control": "max-age=31536000, immutable"}


Asked = Callable[[Any], dict[str, Any]]  # what the canvas asks the server


def canvas(segment: Asked | None, draft: Asked | None, **options: Any) -> gr.HTML:
    """Show a photo and the drawing on it. The value is the drawing, with the key of its photo.

    The prop `photo` opens a photo, see `canvas_state`. A file that is dropped on the canvas, or pasted, triggers a
    `drop` event with "path". With drafts, moving an arrow or a piece triggers a `move` event at its end.

    Args:
        segment: {"key": of the photo, "at": [x, y]} → {"outline"} or {"error"}; None hides the Click tool.
        draft: drawing with the key of its photo → {"src"} or nothing, see `Drafts`; None for no drafts.
    """
    functions = [function for function in (segment, draft) if function is not None]
    named: dict[str, Any] = {"server_functions": functions} if functions else {}
    shown = {"photo": None, "segmenter": segment is not None, "live": draft is not None}
    return _component("canvas", events=["drop", "move"], **shown, **named, **options)


def status(value: dict[str, Any], **options: Any) -> gr.HTML:
    """Show a message and a progress bar, see `message`."""
    return _component("status", value, **options)


def message(text: str, alert: bool = False, progress: float | None = None) -> dict[str, Any]:
    """Make the value of `status`.

    Args:
        text: a sentence.
        alert: it reports a failure.
        progress: from 0 to 1; None hides the bar.
    """
    return {"text": text, "alert": alert, "progress": progress}


def pictures(value: Any, height: int, about: str, follow: bool = False, **options: Any) -> gr.HTML:
    """Show a row of pictures of which one can be chosen: {"items": [{"key", "src", "caption"}], "chosen"}.

    Args:
        height: of a picture in pixels.
        about: the row's label for screen readers.
        follow: scroll new pictures into view.
    """
    return _component("pictures", value, height=height, about=about, follow=follow, **options)


def tree(**options: Any) -> gr.HTML:
    """Show the history: {"nodes": [{"key", "parent", "thumb", "caption"}], "shown", "base"}."""
    return _component("tree", **options)


def matches(**options: Any) -> gr.HTML:
    """Show where each place of an edit attends to in its photo, see static/matches.js."""
    return _component("matches", **options)


def script_routes() -> list[Route]:
    """Return the routes of the modules, for the server's `app_kwargs`. They need no login and hold no data."""
    modules = {path.relative_to(STATIC).as_posix(): path for path in STATIC.rglob("*.js")}

    def module(request: Request) -> Response:
        path = modules.get(request.path_params["name"])
        if path is None:
            return Response(status_code=404)
        return FileResponse(path, media_type="text/javascript", headers=FOREVER)

    return [Route(f"/{_script_folder()}/{{name:path}}", module)]


def _script_folder() -> str:
    """The folder of the modules in URLs. It changes with their text, so that a browser never mixes two versions."""
    digest = sha256()
    for path in sorted(STATIC.rglob("*.js")):
        digest.update(path.read_bytes())
    return f"scripts/{digest.hexdigest()[:16]}"


def _component(name: str, value: Any = None, events: Sequence[str] = (), **options: Any) -> gr.HTML:
    def text(file: str) -> str:
        return (STATIC / file).read_text("utf-8")

    script = text("load.js").replace("@MODULE@", f"{_script_folder()}/{name}.js")
    return gr.HTML(
        value,
        html_template=text(f"{name}.html"),
        css_template=text(f"{name}.css"),
        js_on_load=script.replace("@EVENTS@", json.dumps(events)),
        apply_default_css=False,
        **options,
    )
