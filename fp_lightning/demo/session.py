"""Sessions: each user's photos and edits, on disk, for some hours."""

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
MOST_SESSIONS = 1000
GONE = "this image is no longer in the history; choose another one"


@dataclass
class Node:
    """A photo, or an edit of its parent."""

    key: str  # random; the browser stores the drawing under it
    parent: str | None
    image: Path  # PNG
    caption: str
    edit: Path | None = None  # the saved edit that made the image, NAME.edit.json
    drawing: Any = None  # of that edit, or the one that comes with a photo
    size: tuple[int, int] = (0, 0)  # (height, width) in pixels
    thumb: str = ""  # data URL

    def open(self) -> Image.Image:
        """Read the image, RGB."""
        with Image.open(self.image) as image:
            return image.convert("RGB")


@dataclass
class Session:
    """One user's history, a tree of nodes. `base` is on the canvas, `shown` is in the viewer."""

    token: str
    folder: Path
    nodes: dict[str, Node] = field(default_factory=dict)
    base: str = ""
    shown: str = ""
    controls: Controls | None = None  # of the last edit
    count: int = 0  # of all images so far, removed ones too
    used: float = field(default_factory=time.monotonic)  # last, in seconds
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add_photo(self, photo: Image.Image, caption: str, drawing: Any = None) -> Node:
        """Add a photo and make it the base. The other nodes stay."""
        node = self._add(photo, None, caption, drawing=drawing)
        self.base = self.shown = node.key
        return node

    def add_edit(self, result: Image.Image, edit: Edit, parent: str, caption: str) -> Node:
        """Add an edit of `parent` and show it."""
        node = self._add(result, parent, caption, edit=edit, drawing=edit.drawing)
        self.shown = node.key
        return node

    def _add(
        self, image: Image.Image, parent: str | None, caption: str, edit: Edit | None = None, drawing: Any = None
    ) -> Node:
        with self.lock:
            self._remove_oldest()
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

    def _remove_oldest(self) -> None:
        """Make space for a node: remove the oldest that has no edits and is not in use."""
        while len(self.nodes) >= MOST_NODES:
            needed = {node.parent for node in self.nodes.values()} | {self.base, self.shown}
            oldest = next((key for key in self.nodes if key not in needed), None)
            if oldest is None:
                raise InputError(
                    f"the history is one chain of {MOST_NODES} images, which is the limit; download the last one and "
                    "open it as a new photo"
                )
            node = self.nodes.pop(oldest)
            for path in (node.image, node.edit):
                if path is not None:
                    path.unlink(missing_ok=True)

    def node(self, key: Any) -> Node:
        """Return the node of a key; raise InputError if there is none."""
        if not isinstance(key, str) or key not in self.nodes:
            raise InputError(GONE)
        return self.nodes[key]


class Sessions:
    """All sessions, by a token that only the user's browser knows.

    Args:
        folder: of the files; each session has a folder of its own in it.
        hours: how long an unused session is kept.
    """

    def __init__(self, folder: Path, hours: float = 24.0) -> None:
        if not hours > 0:
            raise InputError(f"sessions must be kept for more than 0 hours, got {hours:g}")
        self.folder, self.hours = folder, hours
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def new(self) -> Session:
        """Remove expired sessions, then make one with a new token."""
        self.remove_expired()
        token = secrets.token_urlsafe(18)
        folder = self.folder / secrets.token_hex(12)  # not the token: users can see file names
        with self._lock:
            self._sessions[token] = Session(token, folder)
        return self._sessions[token]

    def find(self, token: Any) -> Session | None:
        """Return the session of a token; None if there is none or it has expired."""
        session = self._sessions.get(token) if isinstance(token, str) else None
        if session is not None:
            session.used = time.monotonic()
        return session

    def open(self, token: Any) -> Session:
        """Return the session of a token; raise InputError if there is none or it has expired."""
        session = self.find(token)
        if session is None:
            raise InputError("your session on this server has expired; reload the page and open the photo again")
        return session

    def node(self, key: Any) -> Node:
        """Return the node of a key in any session: keys are as secret as tokens.

        Raises:
            InputError: there is none.
        """
        for session in self:
            if isinstance(key, str) and key in session.nodes:
                return session.nodes[key]
        raise InputError(GONE)

    def remove_expired(self) -> None:
        """Remove expired sessions, and the oldest if there are too many."""
        limit = time.monotonic() - 3600 * self.hours
        with self._lock:
            by_age = sorted(self._sessions.values(), key=lambda session: session.used)
            excess = len(by_age) - MOST_SESSIONS + 1
            for number, session in enumerate(by_age):
                if session.used < limit or number < excess:
                    del self._sessions[session.token]
                    shutil.rmtree(session.folder, ignore_errors=True)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions.values()))
