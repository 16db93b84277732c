"""The API: edits and reproduction by programs, many at once, and hostile requests."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from demo.inputs import ACCEPTED, FAST, REFUSED, encode, picture
from fp_lightning.media.edits import read_edit


def ask(server, folder: Path, number: int = 0, **options):
    """Request an edit; return the paths of the image and of the saved edit."""
    folder.mkdir(parents=True, exist_ok=True)
    picture(48, 32, number).save(folder / f"{number}.png")
    client = Client(server.url, verbose=False, download_files=str(folder / "got"))
    inputs = {"points": [[5, 5, 30, 20]], "settings": FAST, "seed": number, **options}
    return client.predict(handle_file(str(folder / f"{number}.png")), **inputs, api_name="/edit")


def test_a_program_edits_and_reproduces(server, tmp_path):
    image, saved = ask(server, tmp_path)
    edit = read_edit(saved)
    assert np.array_equal(np.array(edit.image), np.array(picture(48, 32))) and edit.settings["num_inference_steps"] == 2
    expected = np.array(server.page.service.pipe(**edit.arguments()).images[0])
    assert np.array_equal(np.array(Image.open(image)), expected)
    client = Client(server.url, verbose=False, download_files=str(tmp_path / "again"))
    again, _ = client.predict(handle_file(saved), api_name="/reproduce")
    assert np.array_equal(np.array(Image.open(again)), expected)


def test_twenty_programs_at_once_get_their_own_edit_or_a_full_queue(server, tmp_path):
    def answer(seed):
        try:
            return ask(server, tmp_path / str(seed), seed)
        except AppError as error:
            return str(error)

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(answer, range(20)))
    refusals = [found for found in answers if isinstance(found, str)]
    assert all("edits are waiting, the queue is full; try again in a minute." in text for text in refusals)
    assert len(refusals) < 20 and len(server.page.queue) == 0
    for seed, found in enumerate(answers):
        if not isinstance(found, str):
            edit = read_edit(found[1])
            assert edit.seed == seed and np.array_equal(np.array(edit.image), np.array(picture(48, 32, seed)))
            expected = server.page.service.pipe(**edit.arguments()).images[0]
            assert np.array_equal(np.array(Image.open(found[0])), np.array(expected))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": None}, "has no signal; pass a sketch"),
        ({"points": [[1, 2, 3]]}, "row 1 is"),
        ({"points": [[1, 2, 3, 4000]]}, "outside of its image"),
        ({"settings": {"num_inference_steps": "many"}}, "'many', which is not valid"),
        ({"settings": {"model": "/etc"}}, "has the setting 'model'"),
        ({"seed": -4}, "has the seed -4"),
    ],
)
def test_a_bad_request_returns_one_line(server, tmp_path, options, message):
    with pytest.raises(AppError) as caught:
        ask(server, tmp_path, **options)
    assert message in str(caught.value) and "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


@pytest.mark.parametrize("name", [*ACCEPTED, *REFUSED])
def test_the_server_survives_any_upload(server, tmp_path, name):
    accepted = name in ACCEPTED
    data = (ACCEPTED if accepted else REFUSED)[name][0]
    (tmp_path / name).write_bytes(data)
    client = Client(server.url, verbose=False, download_files=str(tmp_path / "got"))
    inputs = {"points": [[0, 0, 1, 1]], "settings": FAST, "api_name": "/edit"}
    if accepted:
        image, _ = client.predict(handle_file(str(tmp_path / name)), **inputs)
        assert Image.open(image).size == ACCEPTED[name][1]
    else:
        with pytest.raises(AppError, match="not an image|empty|more than"):
            client.predict(handle_file(str(tmp_path / name)), **inputs)
    assert httpx.get(server.url).status_code == 200


def raw_call(server, path: str) -> str:
    """Send a request to /edit with a path that was never uploaded; return the server's answer."""
    data = {"path": path, "meta": {"_type": "gradio.FileData"}}
    call = httpx.post(
        f"{server.url}gradio_api/call/edit", json={"data": [data, None, None, [[0, 0, 1, 1]], None, FAST, 0]}
    )
    event = call.json()["event_id"]
    return httpx.get(f"{server.url}gradio_api/call/edit/{event}", timeout=30).text


def test_paths_of_a_client_open_nothing(server, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(encode(picture(8, 8)))
    for path in (str(secret), "/etc/passwd", f"{server.folder}/gradio/../../{secret}", "../../etc/passwd"):
        answer = raw_call(server, path)
        assert "event: error" in answer and "complete" not in answer
        got = httpx.get(f"{server.url}gradio_api/file={path}")
        assert got.status_code in (403, 404)
    session = server.page.sessions.new()
    node = session.add_photo(picture(8, 8), "photo")
    assert httpx.get(f"{server.url}gradio_api/file={node.image}").status_code in (403, 404)


def test_names_with_paths_stay_in_the_upload_folder(server):
    for name in ("../../../evil.png", "/etc/evil.png", "..\\evil.png", "a/../../evil.png", ".", "a" * 400 + ".png"):
        done = httpx.post(f"{server.url}gradio_api/upload", files={"files": (name, encode(picture(8, 8)))})
        if done.status_code == 200:
            (path,) = done.json()
            assert Path(path).resolve().is_relative_to(server.folder / "gradio")
    assert not list(server.folder.parent.glob("evil*")) and httpx.get(server.url).status_code == 200


def test_the_page_handlers_are_not_in_the_api(server):
    info = httpx.get(f"{server.url}gradio_api/info").json()["named_endpoints"]
    assert set(info) == {"/edit", "/reproduce"}
