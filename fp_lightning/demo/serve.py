"""`fp-lightning demo`: loads the model, then serves the page and its API until it is stopped."""

from __future__ import annotations

import ipaddress
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from fp_lightning.errors import InputError
from fp_lightning.inference.pipeline import FramePainterPipeline

USER = "editor"  # of the password


@dataclass(frozen=True)
class Served:
    """A running server."""

    url: str
    page: Any  # of `fp_lightning.demo.page`
    folder: Path  # of all its files; removed when the server ends


@contextmanager
def served(
    model: str = "tiny-editor",
    host: str = "127.0.0.1",
    port: int = 7860,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    dtype: str | None = None,
    password: str | None = None,
    queue: int = 32,
    per_user: int = 2,
    max_megabytes: float = 25,
    max_megapixels: float = 40,
    keep_hours: float = 24,
    segmenter: str | None = None,
) -> Iterator[Served]:
    """Serve until the block ends, then remove all files.

    Args:
        model: pipeline folder, hub id, or "tiny-editor".
        host, port: to listen on; port 0 chooses a free one.
        device: "auto" chooses a GPU if there is one.
        dtype: of the weights; by default float16 on a GPU, else float32.
        password: for the user name "editor"; None serves without a login.
        queue, per_user: the most edits in the queue, of all users and of one browser or program.
        max_megabytes, max_megapixels: limits of an uploaded photo.
        keep_hours: how long an unused session is kept.
        segmenter: folder or hub id of a model that finds the object at a click, see `Segmenter`.

    Raises:
        InputError: gradio is not installed, the model cannot be loaded, or the port is taken.
    """
    try:
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        with without_proxies():  # it opens a client, which reads them
            import gradio
    except ImportError as error:
        raise InputError("the demo needs gradio; pip install 'fp-lightning[demo]'") from error
    from fp_lightning.demo.components import script_routes
    from fp_lightning.demo.editing import EditService
    from fp_lightning.demo.events import connect_events
    from fp_lightning.demo.page import Page
    from fp_lightning.demo.queue import EditQueue
    from fp_lightning.demo.segmenter import Segmenter
    from fp_lightning.demo.session import Sessions
    from fp_lightning.demo.uploads import EDIT_FACTOR, Uploads

    for name, value in (("max-megabytes", max_megabytes), ("max-megapixels", max_megapixels)):
        if not value > 0:
            raise InputError(f"--{name} must be above 0, got {value:g}")
    chosen = _device(device)
    precision = getattr(torch, dtype or ("float16" if chosen == "cuda" else "float32"))
    edit_queue = EditQueue(queue, per_user)
    pipe = FramePainterPipeline.from_pretrained(model, dtype=precision).to(chosen)
    finder = None if segmenter is None else Segmenter(segmenter, chosen)
    folder = Path(tempfile.mkdtemp(prefix="fp_lightning-demo-"))
    cache = folder / "gradio"
    cache.mkdir()
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(cache)
    try:
        uploads = Uploads(cache, int(max_megabytes * 1e6), int(max_megapixels * 1e6))
        sessions = Sessions(folder / "sessions", keep_hours)
        page = Page(EditService(pipe, str(model)), edit_queue, sessions, uploads, finder)
        connect_events(page)
        page.blocks.queue(max_size=1000)
        try:
            with without_proxies():
                _, url, _ = page.blocks.launch(
                    server_name=host,
                    server_port=port or _free_port(host),
                    auth=None if password is None else (USER, password),
                    max_file_size=uploads.max_bytes * EDIT_FACTOR + 1,
                    prevent_thread_lock=True,
                    quiet=True,
                    ssr_mode=False,
                    share=False,
                    theme=gradio.themes.Default(),
                    footer_links=["api"],
                    app_kwargs={"routes": script_routes()},
                )
        except (OSError, OverflowError) as error:
            raise InputError(f"port {port} of {host} cannot be used; choose another with --port") from error
        try:
            yield Served(url, page, folder)
        finally:
            edit_queue.close()
            page.blocks.close(verbose=False)
    finally:
        if before is None:
            os.environ.pop("GRADIO_TEMP_DIR", None)
        else:
            os.environ["GRADIO_TEMP_DIR"] = before
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def without_proxies() -> Iterator[None]:
    """Hide the proxies of the environment within the block. gradio asks the new server whether it has started, and no
    proxy reaches this machine's own addresses.
    """
    names = [name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "all_proxy")]
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)


def serve(host: str, open_to_all: bool, password: str | None, **options: Any) -> None:
    """Serve until Ctrl+C or SIGTERM, and print the address.

    If the host is not this machine's loopback address, there is a password: `password`, or a random one that is
    printed, unless `open_to_all`.
    """
    logging.getLogger("httpx").setLevel(logging.WARNING)
    local = _is_local(host)
    if open_to_all and password:
        raise InputError("--password and --no-password exclude each other; pass only one")
    if not local and not open_to_all and password is None:
        password = secrets.token_urlsafe(9)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # `served` then removes the files
    print(f"Loading {options.get('model', 'the model')} …", flush=True)
    with served(host=host, password=password, **options) as running:
        print(f"The editor is at {running.url} (press Ctrl+C to stop).")
        if not local:
            print(f"It listens on {host}: anyone who can reach this machine can reach it.")
            if password is None:
                print("It has no password (--no-password).")
        if password is not None:
            print(f"User name: {USER}   password: {password}")
        sys.stdout.flush()
        threading.Event().wait()


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _device(requested: str) -> str:
    available = torch.cuda.is_available()
    if requested == "cuda" and not available:
        raise InputError("--device cuda: torch finds no GPU; use --device cpu")
    return ("cuda" if available else "cpu") if requested == "auto" else requested


def _free_port(host: str) -> int:
    import socket

    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
