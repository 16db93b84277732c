"""The report is one whole page without outside parts; metrics.json is plain JSON; files appear whole."""

from __future__ import annotations

import json

import pytest
import torch
from markup import Markup
from PIL import Image

from fp_lightning.evaluation.report import write_metrics, write_report
from fp_lightning.evaluation.samples import ReportSample, contact_sheet
from fp_lightning.files import write_atomic
from fp_lightning.media.pictures import encode, to_tensor
from fp_lightning.types import EditBatch

METRICS = {
    "n": 3,
    "n_moving": 2,
    "ssim": 0.91234,
    "ssim_copy_source": 0.95,
    "psnr_moving": 21.5,
    "psnr_moving_copy_source": 17.25,
    "psnr_moving_gain": 4.25,
    "lpips": None,
    "speed_of_light": 3.75,
    "not_measured": {"lpips": "no <weights>"},
}


class Page(Markup):
    """A report."""

    @property
    def text(self) -> str:
        return " ".join(self.words)


def image(value: int = 0, size: tuple[int, int] = (8, 12)) -> torch.Tensor:
    return torch.full((3, *size), value, dtype=torch.uint8)


def sample(name: str = "a", **changes) -> ReportSample:
    given = {"source": image(10), "signal": image(20), "edited": image(30), "target": image(40)} | changes
    return ReportSample(name, **given)


def page(tmp_path, metrics=METRICS, samples=(), **options) -> Page:
    return Page(write_report(tmp_path, metrics, samples, "Title", **options).read_text())


# metrics.json


def test_metrics_are_read_back_as_written(tmp_path):
    path = write_metrics(tmp_path / "run", METRICS)
    assert path == tmp_path / "run" / "metrics.json"
    assert json.loads(path.read_text()) == METRICS


def test_a_number_that_is_not_finite_is_null_with_a_reason(tmp_path):
    content = json.loads(write_metrics(tmp_path, {"psnr": float("nan"), "ssim": 1.0}).read_text())
    assert content == {"psnr": None, "ssim": 1.0, "not_measured": {"psnr": "the value is nan"}}


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write_atomic(tmp_path / "metrics.json", b"old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_atomic(path, b"new")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


# report.html


def test_every_tag_is_closed(tmp_path):
    report = page(tmp_path, samples=[sample(), sample("b", target=None)], settings={"signal": "sketch"})
    assert report.open == []
    assert report.tags[0][0] == "html"


def test_nothing_is_requested_from_outside(tmp_path):
    report = page(tmp_path, samples=[sample(), sample(edited=image(0, (300, 300)))])
    for tag, attributes in report.tags:
        assert tag not in ("link", "iframe")
        for name in ("src", "href", "srcset"):
            assert attributes.get(name, "data:").startswith("data:")
    css = (tmp_path / "report.html").read_text()
    assert "url(" not in css
    assert "@import" not in css


def test_four_images_a_sample_and_a_note_for_each_missing_one(tmp_path):
    report = page(tmp_path, samples=[sample(), sample("b", target=None, signal=None)])
    images = [attributes for tag, attributes in report.tags if tag == "img" and "src" in attributes]
    assert [i["alt"] for i in images] == [
        *(f"{column} of a" for column in ("source", "signal", "edited", "target")),
        "source of b",
        "edited of b",
    ]
    assert "no target" in report.text
    assert "no signal" in report.text


def test_small_images_are_exact_and_enlarged_by_pixels(tmp_path):
    import base64
    import io

    noise = torch.randint(0, 256, (3, 8, 12), dtype=torch.uint8)
    report = page(tmp_path, samples=[sample(edited=noise, target=image(0, (300, 400)))])
    by_alt = {attributes["alt"]: attributes for tag, attributes in report.tags if tag == "img"}
    small, large = by_alt["edited of a"], by_alt["target of a"]
    stored = Image.open(io.BytesIO(base64.b64decode(small["src"].partition(",")[2])))
    assert torch.equal(to_tensor(stored), noise)
    assert small["class"] == "small"
    assert "class" not in large


def test_names_and_titles_are_escaped(tmp_path):
    name = '<b onload="x">&'
    report = Page(write_report(tmp_path, METRICS, [sample(name)], name, settings={name: name}).read_text())
    assert not any("onload" in attributes for _, attributes in report.tags)
    assert report.words.count(name) == 5  # page title, heading, sample, setting and its value
    assert "no <weights>" in report.text


def test_scores_stand_beside_the_floor_and_the_paper(tmp_path):
    text = page(tmp_path, settings={"signal": "sketch"}).text
    for shown in ("0.912", "0.950", "−0.038", "21.50 dB", "17.25 dB", "+4.25 dB", "0.859", "7.783", "3.750"):
        assert shown in text
    assert "not directly comparable" in text
    assert "0.888" not in text  # another signal's row


def test_an_unknown_signal_shows_the_papers_three_rows(tmp_path):
    text = page(tmp_path).text
    for shown in ("0.859", "0.888", "0.825"):
        assert shown in text


def test_better_and_worse_follow_the_direction_of_the_metric(tmp_path):
    metrics = {"lpips": 0.1, "lpips_copy_source": 0.2, "ssim": 0.8, "ssim_copy_source": 0.9, "not_measured": {}}
    verdicts = [(a["class"], a["title"]) for tag, a in page(tmp_path, metrics).tags if tag == "td" and "title" in a]
    assert verdicts == [("bad", "worse"), ("good", "better")]  # SSIM fell, LPIPS fell


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_missing_numbers_are_never_shown_as_numbers(tmp_path, value):
    metrics = {"n": 1, "ssim": value, "ssim_copy_source": value, "not_measured": {"lpips": "no weights"}}
    text = page(tmp_path, metrics, samples=[sample(scores={"ssim": float("nan")})]).text
    assert "nan" not in text
    assert "inf" not in text
    assert "None" not in text
    assert "not measured" in text


# images


def test_a_contact_sheet_has_a_row_per_sample_and_grey_between():
    sheet = contact_sheet([sample(), sample(target=None)], gap=2)
    assert sheet.shape == (3, 8 + 2 + 8, 4 * 12 + 3 * 2)
    assert sheet[0, 0, [0, 14, 28, 42]].tolist() == [10, 20, 30, 40]
    assert sheet[0, 10, [0, 14, 28, 42]].tolist() == [10, 20, 30, 128]
    assert sheet[0, 0, [12, 13]].tolist() == sheet[0, [8, 9], 0].tolist() == [128, 128]


def test_a_contact_sheet_of_several_sizes_is_refused():
    with pytest.raises(ValueError, match="one size"):
        contact_sheet([sample(target=image(0, (4, 4)))])


def test_images_survive_encoding():
    noise = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    import io

    assert torch.equal(to_tensor(Image.open(io.BytesIO(encode(noise)))), noise)


def test_samples_of_a_batch_show_its_control():
    batch = EditBatch(
        source=torch.full((2, 3, 8, 8), -1.0), name=["a", "b"], target=None, control=torch.full((2, 3, 8, 8), 0.2)
    )
    first, second = ReportSample.of(torch.full((2, 3, 8, 8), 2.0), batch)
    assert (first.name, second.name) == ("a", "b")
    assert first.signal is not None
    assert [int(x[0, 0, 0]) for x in (first.source, first.signal, first.edited)] == [0, 51, 255]
    assert first.target is None
    assert len(ReportSample.of(batch.source, batch, limit=1)) == 1


def test_a_drag_is_an_arrow_that_ends_in_a_dot_at_its_target():
    batch = EditBatch(
        source=torch.full((1, 3, 32, 32), -1.0),
        name=["a"],
        points=torch.tensor([[[4.5, 8.5, 20.5, 8.5], [4.5, 28.5, 20.5, 28.5]]]),
        points_valid=torch.tensor([[True, False]]),
    )
    (drawn,) = ReportSample.of(batch.source, batch)
    assert drawn.signal is not None
    lit = drawn.signal.amax(0) > 0
    assert lit[8, 4:21].all()
    assert not lit[20:].any()  # the drag that is not valid
    assert drawn.signal[:, 8, 20].tolist() == [255, 45, 85]
    assert drawn.signal[:, 8, 10].tolist() == [255, 214, 10]


# distributions, intervals, other systems


def test_scores_can_be_sorted_by_and_are_drawn(tmp_path):
    scores = [{"ssim": x, "ssim_copy_source": x - 0.1, "psnr": 20.0} for x in (0.5, 0.7, 0.9, 0.8)]
    report = page(tmp_path, samples=[sample(str(i), scores=row) for i, row in enumerate(scores)])
    cards = [attributes for tag, attributes in report.tags if tag == "article"]
    assert [card["data-ssim"] for card in cards] == ["0.5", "0.7", "0.9", "0.8"]
    options = [attributes["value"] for tag, attributes in report.tags if tag == "option"]
    assert {"ssim 1", "ssim -1", "psnr 1", "psnr -1", ""} == set(options)
    assert sum(tag == "svg" for tag, _ in report.tags) == 1  # PSNR is the same for all
    assert "0.400" in report.text and "0.900" in report.text  # the ends of its axis


def test_intervals_stand_under_their_values(tmp_path):
    text = page(tmp_path, METRICS | {"intervals": {"psnr_moving": [20.25, 22.75]}}).text
    assert "20.25 to 22.75" in text


def test_correspondence_is_a_table_by_layer(tmp_path):
    row = {"tokens": 70, "error": 12.34, "within_1": 0.5, "within_2": 0.625, "within_4": 1.0}
    text = page(tmp_path, correspondence={"down.0": row, "all": row}).text
    for shown in ("down.0", "12.3 px", "50.0 %", "62.5 %", "100.0 %"):
        assert shown in text


def test_other_systems_stand_between_the_edit_and_the_target():
    other = sample(others={"theirs": image(35)}, label="ours")
    assert list(other.columns()) == ["source", "signal", "ours", "theirs", "target"]
