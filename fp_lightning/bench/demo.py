"""The interactive editor as a service: an edit through it against the pipeline's own call, and many people at once."""

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
from fp_lightning.demo.examples import examples
from fp_lightning.demo.run import EditRun
from fp_lightning.demo.serve import Served, served
from fp_lightning.demo.studio import Step
from fp_lightning.media.edits import Edit
from fp_lightning.scenes.scene import Scene

PEOPLE, EDITS = 20, 10  # at once, and how many each of them makes
STEPS = 4  # of each of these


def demo(rounds: int) -> list[Result]:
    """An edit of the first example with 25 guided steps by tiny-editor; then 20 people who make ten short ones each."""
    with tempfile.TemporaryDirectory() as name, served(port=0, queue=PEOPLE, per_user=1) as running:
        from gradio_client import Client, handle_file

        folder, studio = Path(name), running.page.studio
        example = examples()[0]
        edit = studio.prepared(Edit(example.photo, points=[[60.0, 150.0, 110.0, 90.0]]))
        edit.save(folder / "edit.json")
        client = Client(running.url, verbose=False, download_files=name)
        got: dict[str, Any] = {}

        def ours() -> None:
            got["ours"] = client.predict(handle_file(str(folder / "edit.json")), api_name="/reproduce")[0]

        def theirs() -> None:
            got["theirs"] = studio.pipe(**edit.arguments()).images[0]

        ours()  # the first call connects
        result = compare("demo", ours, theirs, rounds)
        images = [np.array(image).astype(int) for image in (Image.open(got["ours"]), got["theirs"])]
        result.error = float(np.abs(images[0] - images[1]).max())
        result.settings |= {
            "error": "levels of 255",
            "first preview": f"{statistics.median(_first_preview(running, edit) for _ in range(rounds)):.2f} s",
            **_many(running),
        }
    return [result]


def _first_preview(running: Served, edit: Edit) -> float:
    """Seconds from the press of Edit to the first preview, without the browser's own time."""
    begin, seen = time.perf_counter(), [0.0]
    page = running.page

    class FirstLook:
        def __init__(self, job: Any) -> None:
            self.check = job.check

        def tell(self, step: Step) -> None:
            seen[0] = seen[0] or time.perf_counter() - begin

    page.desk.submit("bench", lambda job: page.studio.make(FirstLook(job), [edit], lambda *_: None)).future.result()
    return seen[0]


def _many(running: Served) -> dict[str, Any]:
    """People with photos of their own at once: how many got what is theirs, and the memory of the process."""
    page, process = running.page, psutil.Process()
    own: list[bool] = []

    def memory() -> float:
        gc.collect()
        return process.memory_info().rss / 2**20

    def person(number: int) -> None:
        photo = Image.fromarray(Scene(1000 + number, (128, 128)).frame(0.0))
        work = page.works.new()
        base = work.start(photo, "photo")
        for seed in range(EDITS):
            points = [[30.0, 30.0, 60.0 + number, 60.0 + seed]]
            edit = page.studio.prepared(Edit(photo, points=points, settings={"num_inference_steps": STEPS}, seed=seed))
            run = EditRun(page.studio, page.desk, work, base.key, [edit])
            run.result()
            made[number, seed] = (edit, work.node(work.shown).open())

    made: dict[tuple[int, int], tuple[Edit, Image.Image]] = {}
    before, begin = memory(), time.perf_counter()
    with ThreadPoolExecutor(PEOPLE) as pool:
        people = [pool.submit(person, number) for number in range(PEOPLE)]
        during = before
        while not all(each.done() for each in people):
            during = max(during, process.memory_info().rss / 2**20)
            time.sleep(0.2)
        for each in people:
            each.result()
    seconds = time.perf_counter() - begin
    for number in range(PEOPLE):
        edit, image = made[number, EDITS - 1]
        expected = page.studio.pipe(**edit.arguments()).images[0]
        own.append(np.array_equal(np.array(image), np.array(expected)))
    made.clear()
    return {
        "people": PEOPLE,
        "got their own": sum(own),
        "edits": f"{PEOPLE * EDITS} of {STEPS} steps in {seconds:.0f} s",
        "MiB before, most, after": f"{before:.0f}, {during:.0f}, {memory():.0f}",
    }
