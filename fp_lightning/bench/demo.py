"""The interactive editor: an edit through its API against the pipeline's call, and many users at once."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from fp_lightning.bench.measure import Result, compare
from fp_lightning.demo.editing import Progress
from fp_lightning.demo.examples import examples
from fp_lightning.demo.run import EditRun
from fp_lightning.demo.serve import Served, served
from fp_lightning.media.edits import Edit
from fp_lightning.scenes.scene import Scene

USERS, EDITS = 20, 10  # at once, and edits of each
STEPS = 4  # of each edit


def demo(rounds: int) -> list[Result]:
    """Run 25 guided steps on the first example with tiny-editor, then ten short edits for each of 20 users."""
    with tempfile.TemporaryDirectory() as name, served(port=0, queue=USERS, per_user=1) as running:
        from gradio_client import Client, handle_file

        folder, service = Path(name), running.page.service
        example = examples()[0]
        edit = service.prepare(Edit(example.photo, points=[[60.0, 150.0, 110.0, 90.0]]))
        edit.save(folder / "edit.json")
        client = Client(running.url, verbose=False, download_files=name)
        results: dict[str, Any] = {}

        def ours() -> None:
            results["ours"] = client.predict(handle_file(str(folder / "edit.json")), api_name="/reproduce")[0]

        def theirs() -> None:
            results["theirs"] = service.pipe(**edit.arguments()).images[0]

        ours()  # connect before the timing
        result = compare("demo", ours, theirs, rounds)
        images = [np.array(image).astype(int) for image in (Image.open(results["ours"]), results["theirs"])]
        result.error = float(np.abs(images[0] - images[1]).max())
        result.settings |= {
            "error": "levels of 255",
            "first preview": f"{statistics.median(_first_preview(running, edit) for _ in range(rounds)):.2f} s",
            **_many_users(running),
        }
    return [result]


def _first_preview(running: Served, edit: Edit) -> float:
    """Return the seconds from Edit to the first preview, without the browser."""
    begin, seen = time.perf_counter(), [0.0]
    page = running.page

    class FirstReport:
        def __init__(self, job: Any) -> None:
            self.check = job.check

        def report(self, progress: Progress) -> None:
            seen[0] = seen[0] or time.perf_counter() - begin

    page.queue.submit("bench", lambda job: page.service.run(FirstReport(job), [edit], lambda *_: None)).future.result()
    return seen[0]


def _many_users(running: Served) -> dict[str, Any]:
    """Serve users with a photo each at once: count those who got their own edits, measure the process's memory."""
    page, process = running.page, psutil.Process()
    correct: list[bool] = []

    def memory() -> float:
        gc.collect()
        return process.memory_info().rss / 2**20

    def user(number: int) -> None:
        photo = Image.fromarray(Scene(1000 + number, (128, 128)).frame(0.0))
        session = page.sessions.new()
        base = session.add_photo(photo, "photo")
        for seed in range(EDITS):
            points = [[30.0, 30.0, 60.0 + number, 60.0 + seed]]
            edit = page.service.prepare(Edit(photo, points=points, settings={"num_inference_steps": STEPS}, seed=seed))
            run = EditRun(page.service, page.queue, session, base.key, [edit])
            run.result()
            made[number, seed] = (edit, session.node(session.shown).open())

    made: dict[tuple[int, int], tuple[Edit, Image.Image]] = {}
    before, begin = memory(), time.perf_counter()
    with ThreadPoolExecutor(USERS) as pool:
        users = [pool.submit(user, number) for number in range(USERS)]
        during = before
        while not all(each.done() for each in users):
            during = max(during, process.memory_info().rss / 2**20)
            time.sleep(0.2)
        for each in users:
            each.result()
    seconds = time.perf_counter() - begin
    for number in range(USERS):
        edit, image = made[number, EDITS - 1]
        expected = page.service.pipe(**edit.arguments()).images[0]
        correct.append(np.array_equal(np.array(image), np.array(expected)))
    made.clear()
    return {
        "users": USERS,
        "got their own": sum(correct),
        "edits": f"{USERS * EDITS} of {STEPS} steps in {seconds:.0f} s",
        "MiB before, most, after": f"{before:.0f}, {during:.0f}, {memory():.0f}",
    }
