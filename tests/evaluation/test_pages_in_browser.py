"""The scripts of the report and of the user study, in a real browser."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from fp_lightning.evaluation.examples import PairExamples
from fp_lightning.evaluation.report import write_report
from fp_lightning.evaluation.samples import ReportSample
from fp_lightning.evaluation.study import QUESTIONS, build_study, score_study
from fp_lightning.pairs.shards import write_manifest, write_shard
from fp_lightning.scenes.scene import Scene

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; `make chromium` installs Debian's")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Opens a file; a script's error or a request to anything but the file fails the test."""
    context, wrong = browser.new_context(accept_downloads=True), []

    def opened(path):
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url))
        page.goto(path.as_uri())
        return page

    yield opened
    context.close()
    assert [entry for entry in wrong if not entry.startswith(("file:", "blob:", "data:"))] == []


def test_samples_are_sorted_and_compared(open_page, tmp_path):
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    samples = [ReportSample(n, image, None, image, image, {"ssim": x}) for n, x in (("a", 0.5), ("b", 0.9), ("c", 0.1))]
    page = open_page(write_report(tmp_path, {"n": 3}, samples, "Title"))

    def order():
        return page.locator("#gallery h3").all_text_contents()

    for option, expected in {"ssim 1": "cab", "ssim -1": "bac", "": "abc"}.items():
        page.select_option("#sort", option)
        assert order() == list(expected)
    page.locator("#gallery article").nth(1).locator("img").nth(1).click()
    assert page.locator("#compare").is_visible()
    assert page.locator("#left option").all_inner_texts() == ["source", "edited", "target"]
    assert (page.input_value("#left"), page.input_value("#right")) == ("0", "1")
    page.locator("#share").fill("20")
    assert "80%" in page.locator("#over").evaluate("image => image.style.clipPath")
    page.click("#close")
    assert not page.locator("#compare").is_visible()


def test_saved_answers_survive_a_reload_and_are_scored(open_page, tmp_path):
    write_shard(tmp_path / "pairs", "v.mp4", [Scene(i, (64, 64)).pair(stride=8) for i in range(2)])
    write_manifest(tmp_path / "pairs", [{"video": "v.mp4", "pairs": 2, "rejected": {}, "error": None}])
    examples = PairExamples(tmp_path / "pairs")
    for level, folder in ((0, tmp_path / "dark"), (255, tmp_path / "bright")):
        folder.mkdir()
        for name in examples.names:
            Image.fromarray(np.full((64, 64, 3), level, np.uint8)).save(folder / f"{name}.png")
    page = open_page(build_study(tmp_path / "dark", tmp_path / "bright", examples, tmp_path / "study"))
    key = tmp_path / "study" / "key.json"
    for number, item in enumerate(json.loads(key.read_text())["items"]):
        side = "left" if item["left"] == "dark" else "right"
        for question in QUESTIONS:
            page.check(f"[name='{number}.{question}'][value={side}]")
        if number == 0:
            page.click("#next")
            other = open_page(tmp_path / "study" / "study.html")  # storage is asynchronous between pages
            other.wait_for_function("Object.values(localStorage).some(kept => kept.includes('quality'))")
            page.reload()
    assert page.inner_text("#position") == "2 of 2, 2 answered"
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(tmp_path / "answers.json")
    result = score_study(key, [tmp_path / "answers.json"])
    assert {question: found["wins"] for question, found in result["questions"].items()} == dict.fromkeys(QUESTIONS, 2)
