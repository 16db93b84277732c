"""Edits for programs, over Gradio's API: `gradio_client.Client(url).predict(…, api_name="/edit")`."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

import gradio as gr
from PIL import Image

from fp_lightning.demo.editing import EditService, error_message
from fp_lightning.demo.queue import EditQueue
from fp_lightning.demo.uploads import Uploads
from fp_lightning.errors import InputError
from fp_lightning.media.edits import SUFFIX, Edit, check_seed, check_settings
from fp_lightning.media.images import png_bytes


def add_api(service: EditService, queue: EditQueue, uploads: Uploads) -> None:
    """Add the endpoints /edit and /reproduce to the open `gr.Blocks`.

    Each returns the files of the edited image and of its saved edit. A failure raises an error in the client whose
    message is one sentence.
    """

    async def edit(
        photo: str,
        request: gr.Request,
        sketch: str | None = None,
        coarse: str | None = None,
        points: Any = None,
        region: str | None = None,
        settings: Any = None,
        seed: int = 0,
    ) -> tuple[str, str]:
        """Edit a photo by one or more signals.

        photo: file. sketch, coarse, region: image files as the pipeline takes them. points: rows of
        [x_from, y_from, x_to, y_to] in pixels of the photo. settings: of the pipeline's call, such as
        {"num_inference_steps": 25, "guidance_scale": 3.0}. seed: whole number.
        """

        def requested() -> Edit:
            if not photo:
                raise InputError("the request has no photo; pass a file")
            images = {"sketch": sketch, "coarse": coarse, "region": region}
            signals: dict[str, Any] = {name: uploads.signal(path) for name, path in images.items() if path}
            if points:
                signals["points"] = points
            return Edit(
                uploads.image(photo),
                **signals,
                settings=check_settings(settings or {}, "the request"),
                seed=check_seed(seed, "the request"),
            )

        return await _run(service, queue, uploads, requested, request)

    async def reproduce(file: str, request: gr.Request) -> tuple[str, str]:
        """Reproduce a saved edit: the same pixels on the same machine. file: NAME.edit.json."""

        def requested() -> Edit:
            if not file:
                raise InputError("the request has no saved edit; pass a file")
            return uploads.edit(file)

        return await _run(service, queue, uploads, requested, request)

    image, saved = gr.File(label="image", visible=False), gr.File(label="edit", visible=False)
    files = {n: gr.File(label=n, visible=False) for n in ("photo", "sketch", "coarse", "region", "file")}
    points = gr.JSON(label="points", visible=False)
    settings = gr.JSON(label="settings", visible=False)
    seed = gr.Number(0, precision=0, label="seed", visible=False)
    button = gr.Button(visible=False)
    inputs = [files["photo"], files["sketch"], files["coarse"], points, files["region"], settings, seed]
    button.click(edit, inputs, [image, saved], api_name="edit", concurrency_limit=None)
    button.click(reproduce, [files["file"]], [image, saved], api_name="reproduce", concurrency_limit=None)


async def _run(
    service: EditService, queue: EditQueue, uploads: Uploads, requested: Callable[[], Edit], request: gr.Request
) -> tuple[str, str]:
    """Run the requested edit and return its files; cancel it if the client disconnects."""
    try:
        edit = await asyncio.to_thread(lambda: service.prepare(requested()))
        results: list[tuple[Edit, Image.Image]] = []
        job = queue.submit(
            f"program {request.session_hash}",
            lambda job: service.run(job, [edit], lambda *result: results.append(result)),
        )
        try:
            async for _ in queue.watch(job):
                pass
        finally:
            queue.cancel(job)
        job.future.result()
        return await asyncio.to_thread(_save, uploads, *results[0])
    except Exception as error:
        raise gr.Error(error_message(error), print_exception=False) from None


def _save(uploads: Uploads, edit: Edit, image: Image.Image) -> tuple[str, str]:
    folder = uploads.folder / secrets.token_hex(16)
    folder.mkdir()
    path = folder / "edit.png"
    path.write_bytes(png_bytes(image))
    return str(path), str(edit.save(folder / f"edit{SUFFIX}"))
