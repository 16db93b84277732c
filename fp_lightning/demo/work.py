"""What each person has on the page: photos, their edits, the edits of those; on disk, for some hours."""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from fp_lightning.demo.controls import Controls
from fp_lightning.demo.pictures import thumbnail
from fp_lightning.errors import InputError
from fp_lightning.files import write_atomic
from fp_lightning.media.edits import SUFFIX, Edit
from fp_lightning.media.images import png_bytes

MOST_NODES = 200  # of one history
MOST_WORKS = 1000
GONE = "this image is no longer in the history; choose another one"


@dataclass
class Node:
    """A photo, or an edit of its parent."""

    key: str  # random, the drawing's name in the browser
    parent: str | None
    image: Path  # PNG
    caption: str
    edit: Path | None = None  # how it was made, NAME.edit.json
    drawing: Any = None  # that it was made from
    size: tuple[int, int] = (0, 0)  # (height, width) in pixels
    thumb: str = ""  # data URL

    def open(self) -> Image.Image:
        """The image, RGB."""
        with Image.open(self.image) as image:
            return image.convert("RGB")


@dataclass
class Work:
    """One person's history: a tree of nodes. `base` is on the canvas, `shown` is looked at."""

    token: str
    folder: Path
    nodes: dict[str, Node] = field(default_factory=dict)
    base: str = ""
    shown: str = ""
    controls: Controls = field(default_factory=Controls)  # of the last edit
    count: int = 0  # of all images that it ever had
    used: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, photo: Image.Image, caption: str, drawing: Any = None) -> Node:
        """A new photo becomes the base; the history keeps the others."""
        node = self._add(photo, None, caption, drawing=drawing)
        self.base = self.shown = node.key
        return node

    def add(self, result: Image.Image, edit: Edit, parent: str, caption: str) -> Node:
        """A new edit of `parent` is shown."""
        node = self._add(result, parent, caption, edit=edit, drawing=edit.drawing)
        self.shown = node.key
        return node

    def _add(
        self, image: Image.Image, parent: str | None, caption: str, edit: Edit | None = None, drawing: Any = None
    ) -> Node:
        with self.lock:
            self._forget_oldest()
            self.count += 1
            key, stem = secrets.token_urlsafe(12), f"{'edit' if edit else 'photo'}-{self.count}"
            self.nodes[key] = Node(
                key=key,
                parent=parent,
                image=write_atomic(self.folder / f"{stem}.png", png_bytes(image)),
                caption=caption,
                edit=edit.save(self.folder / f"{stem}{SUFFIX}") if edit else None,
                drawing=drawing,
                size=(image.height, image.width),
                thumb=thumbnail(image),
            )
        return self.nodes[key]

    def _forget_oldest(self) -> None:
        """Makes room: the oldest that nothing was made from, and that is not in use, goes."""
        while len(self.nodes) >= MOST_NODES:
            parents = {node.parent for node in self.nodes.values()} | {self.base, self.shown}
            oldest = next((key for key in self.nodes if key not in parents), None)
            if oldest is None:
                raise InputError(f"the history holds {MOST_NODES} images in one line; start with a photo of its own")
            node = self.nodes.pop(oldest)
            for path in (node.image, node.edit):
                if path is not None:
                    path.unlink(missing_ok=True)

    def node(self, key: Any) -> Node:
        """Raises InputError: there is none of this name."""
        if not isinstance(key, str) or key not in self.nodes:
            raise InputError(GONE)
        return self.nodes[key]


class Works:
    """Everybody's work, by a token that only their browser knows.

    Args:
        folder: of the files; each work has a folder of its own in it.
        hours: after which work that nobody looks at is removed.
    """

    def __init__(self, folder: Path, hours: float = 24.0) -> None:
        if not hours > 0:
            raise InputError(f"work must be kept for more than 0 hours, got {hours:g}")
        self.folder, self.hours = folder, hours
        self._works: dict[str, Work] = {}
        self._lock = threading.Lock()

    def new(self) -> Work:
        """Work with a new token; old work is removed first."""
        self.clean()
        token = secrets.token_urlsafe(18)
        folder = self.folder / secrets.token_hex(12)  # not the token: file names can be seen
        with self._lock:
            self._works[token] = Work(token, folder)
        return self._works[token]

    def find(self, token: Any) -> Work | None:
        """The work of a token, None if there is none (any more)."""
        work = self._works.get(token) if isinstance(token, str) else None
        if work is not None:
            work.used = time.monotonic()
        return work

    def open(self, token: Any) -> Work:
        """Raises InputError: there is no such work (any more)."""
        work = self.find(token)
        if work is None:
            raise InputError("your work on this server has expired; reload the page and send the photo again")
        return work

    def node(self, key: Any) -> Node:
        """The node of a key, whosever it is: keys are as secret as tokens.

        Raises:
            InputError: there is none (any more).
        """
        for work in self:
            if isinstance(key, str) and key in work.nodes:
                return work.nodes[key]
        raise InputError(GONE)

    def clean(self) -> None:
        """Removes work that is too old, or the oldest where there is too much."""
        limit = time.monotonic() - 3600 * self.hours
        with self._lock:
            by_age = sorted(self._works.values(), key=lambda work: work.used)
            spare = len(by_age) - MOST_WORKS + 1
            for number, work in enumerate(by_age):
                if work.used < limit or number < spare:
                    del self._works[work.token]
                    shutil.rmtree(work.folder, ignore_errors=True)

    def __iter__(self) -> Iterator[Work]:
        return iter(list(self._works.values()))
