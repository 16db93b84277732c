"""The same edits for programs, over Gradio's API: `gradio_client.Client(url).predict(…, api_name="/edit")`."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

import gradio as gr
from PIL import Image

from fp_lightning.demo.desk import Desk
from fp_lightning.demo.studio import Studio, sentence
from fp_lightning.demo.uploads import Uploads
from fp_lightning.errors import InputError
from fp_lightning.media.edits import SUFFIX, Edit, check_seed, check_settings
from fp_lightning.media.images import png_bytes


def add_api(studio: Studio, desk: Desk, uploads: Uploads) -> None:
    """Adds the endpoints /edit and /reproduce to the page that is being laid out.

    Each returns the files of the edited image and of its saved edit. Failures are errors of the client whose message
    is one sentence.
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
        """Edits a photo by one or more signals.

        photo: file. sketch, coarse, region: files of images as the pipeline takes them. points: rows of
        [x_from, y_from, x_to, y_to] in pixels of the photo. settings: of the pipeline's call, such as
        {"num_inference_steps": 25, "guidance_scale": 3.0}. seed: whole number.
        """

        def asked() -> Edit:
            if not photo:
                raise InputError("there is no photo; send one")
            images = {"sketch": sketch, "coarse": coarse, "region": region}
            signals: dict[str, Any] = {n: uploads.signal(path) for n, path in images.items() if path}
            if points:
                signals["points"] = points
            return Edit(
                uploads.image(photo),
                **signals,
                settings=check_settings(settings or {}, "the request"),
                seed=check_seed(seed, "the request"),
            )

        return await _made(studio, desk, uploads, asked, request)

    async def reproduce(file: str, request: gr.Request) -> tuple[str, str]:
        """Makes a saved edit again, to the same pixels on the same machine. file: NAME.edit.json."""

        def asked() -> Edit:
            if not file:
                raise InputError("there is no saved edit; send one")
            return uploads.edit(file)

        return await _made(studio, desk, uploads, asked, request)

    image, saved = gr.File(label="image", visible=False), gr.File(label="edit", visible=False)
    files = {n: gr.File(label=n, visible=False) for n in ("photo", "sketch", "coarse", "region", "file")}
    points = gr.JSON(label="points", visible=False)
    settings = gr.JSON(label="settings", visible=False)
    seed = gr.Number(0, precision=0, label="seed", visible=False)
    button = gr.Button(visible=False)
    given = [files["photo"], files["sketch"], files["coarse"], points, files["region"], settings, seed]
    button.click(edit, given, [image, saved], api_name="edit", concurrency_limit=None)
    button.click(reproduce, [files["file"]], [image, saved], api_name="reproduce", concurrency_limit=None)


async def _made(
    studio: Studio, desk: Desk, uploads: Uploads, asked: Callable[[], Edit], request: gr.Request
) -> tuple[str, str]:
    """The files of an edit that was asked for; it is given up if the client goes away."""
    try:
        edit = await asyncio.to_thread(lambda: studio.prepared(asked()))
        results: list[tuple[Edit, Image.Image]] = []
        job = desk.submit(
            f"program {request.session_hash}",
            lambda job: studio.make(job, [edit], lambda *result: results.append(result)),
        )
        try:
            async for _ in desk.watch(job):
                pass
        finally:
            desk.cancel(job)
        job.future.result()
        return await asyncio.to_thread(_files, uploads, *results[0])
    except Exception as error:
        raise gr.Error(sentence(error), print_exception=False) from None


def _files(uploads: Uploads, edit: Edit, image: Image.Image) -> tuple[str, str]:
    folder = uploads.folder / secrets.token_hex(16)
    folder.mkdir()
    path = folder / "edit.png"
    path.write_bytes(png_bytes(image))
    return str(path), str(edit.save(folder / f"edit{SUFFIX}"))
