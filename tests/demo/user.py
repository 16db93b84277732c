"""A user of the page in a real browser."""

from __future__ import annotations

import io
import json
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from fp_lightning.media.edits import Edit, read_edit

DESKTOP, PHONE = (1280, 900), (390, 844)
PATIENCE = 120_000  # ms; machines are shared


class User:
    """A user with the page open in a browser."""

    def __init__(self, context, server, shots: Path, steps: int = 4, path: str = "") -> None:
        self.context, self.server, self.shots, self.errors = context, server, shots, []
        self.page = context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._seen)
        self.page.goto(server.url + path)
        self.wait_for_canvas()
        self.set("Steps", steps)

    def leave(self) -> None:
        """Forget the session and the drawings, and close all tabs."""
        self.page.evaluate("localStorage.clear()")
        for page in self.context.pages:
            page.close()

    def _seen(self, request) -> None:
        if not request.url.startswith((self.server.url, "data:", "blob:")):
            self.errors.append(f"requested {request.url}")

    def wait_for_canvas(self) -> None:
        self.page.wait_for_selector("#canvas canvas[data-ready]")
        self.page.wait_for_function("document.querySelector('#tree button')")

    def wait_for_another_photo(self, key: str) -> None:
        self.page.wait_for_function("key => document.querySelector('#canvas canvas').dataset.ready !== key", arg=key)

    @property
    def session(self):
        """The server's session of this browser."""
        (found,) = [session for session in self.server.page.sessions if self.key in session.nodes]
        return found

    @property
    def key(self) -> str:
        """The key of the photo on the canvas."""
        return self.page.get_attribute("#canvas canvas", "data-ready")

    @property
    def drawing(self) -> dict:
        """The drawing in the browser's storage."""
        return json.loads(self.page.evaluate("localStorage.getItem('fp_lightning drawings')"))[self.key]

    @property
    def status(self) -> str:
        return self.page.inner_text("#status")

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return where a position in the photo, in pixels, is on the screen."""
        self.page.locator("#canvas canvas").scroll_into_view_if_needed()
        box = self.page.locator("#canvas canvas").bounding_box()
        height, width = self.session.node(self.key).size
        return box["x"] + x / width * box["width"], box["y"] + y / height * box["height"]

    def pull(self, *points: tuple[float, float]) -> None:
        """Drag the pointer through positions in the photo."""
        first, *others = [self.place(*point) for point in points]
        self.page.mouse.move(*first)
        self.page.mouse.down()
        for point in others:
            self.page.mouse.move(*point, steps=4)
        self.page.mouse.up()

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait for a condition."""
        for _ in range(PATIENCE // 100):
            if holds():
                return
            self.page.wait_for_timeout(100)
        raise AssertionError("timed out")

    def press(self, text: str, inside: str = "#canvas") -> None:
        self.page.locator(inside).get_by_role("button", name=text, exact=True).or_(
            self.page.locator(inside).get_by_role("tab", name=text, exact=True)
        ).first.click()

    def set(self, label: str, value: int) -> None:
        self.page.get_by_label(f"number input for {label}").fill(str(value))
        self.page.get_by_label(f"number input for {label}").press("Enter")

    def wait_for_status(self, *texts: str) -> str:
        self.page.wait_for_function(
            "texts => texts.some(text => document.querySelector('#status').textContent.includes(text))", arg=list(texts)
        )
        return self.status

    def edit(self) -> str:
        """Press Edit and wait for the end; return the status."""
        self.page.click("#edit")
        self.page.wait_for_selector("#cancel:not([disabled])")
        self.page.wait_for_selector("#cancel[disabled]")
        return self.status

    def canvas_pixels(self, size: tuple[int, int]) -> np.ndarray:
        """Return what the canvas shows, RGB [h, w, 3] at `size` (width, height)."""
        url = self.page.evaluate("document.querySelector('#canvas canvas').toDataURL()")
        image = Image.open(io.BytesIO(b64decode(url.partition(",")[2]))).convert("RGB")
        return np.array(image.resize(size, Image.Resampling.BOX)).astype(int)

    def upload(self, path: Path) -> None:
        with self.page.expect_file_chooser() as chooser:
            self.page.click("#upload")
        chooser.value.set_files(str(path))

    def shot(self, name: str) -> None:
        self.page.screenshot(path=str(self.shots / f"{name}.png"), full_page=True)

    @property
    def shown_edit(self) -> Edit:
        """The saved edit of the shown image."""
        return read_edit(self.session.node(self.session.shown).edit)


def new_context(browser, size: tuple[int, int]):
    width, height = size
    return browser.new_context(
        viewport={"width": width, "height": height}, has_touch=size == PHONE, accept_downloads=True
    )


def near(line, expected, within: float = 2.0) -> bool:
    return np.allclose(np.array(line), np.array(expected), atol=within)
