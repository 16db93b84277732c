"""The preview shows what is in a folder of pairs and what was turned away, in one page without outside parts."""

from __future__ import annotations

import colorsys
import io
import json
import re
from base64 import b64decode

import numpy as np
import pytest
import torch
from markup import Markup
from PIL import Image

from fp_lightning.errors import InputError
from fp_lightning.pairs.preview import LISTED, write_preview
from fp_lightning.pairs.preview_images import WIDTH, flow_colours, tracks_image
from fp_lightning.pairs.preview_rejected import REASONS
from fp_lightning.pairs.shards import shard_path, write_manifest, write_shard
from fp_lightning.scenes.clips import write_clip
from fp_lightning.scenes.content import SceneContent
from fp_lightning.scenes.scene import Scene
from fp_lightning.types import VideoPair, token_centres

SIZE = (64, 160)
SETTINGS = {"size": list(SIZE), "min_gap": 1.0, "filter": {"still": 0.75}}
ODD = '<b>"x" & y.mp4'
OTHER = {"source": "target", "target": "source"}
SEEN = ("flow target → source", "flow source → target", "tracks", "sketch", "points", "coarse edit")


class Page(Markup):
    """A preview, and its images by what they show."""

    def __init__(self, path) -> None:
        self.markup = path.read_text()
        super().__init__(self.markup)
        self.text = "".join(self.words)
        self.images = {a["alt"]: a["src"] for tag, a in self.tags if tag == "img"}

    def shown(self, start: str) -> list[str]:
        """What images show, of those whose description starts so."""
        return [alt for alt in self.images if alt.startswith(start)]

    def pixels(self, alt: str) -> np.ndarray:
        """[h, w, 3]"""
        data = b64decode(self.images[alt].removeprefix("data:image/webp;base64,"), validate=True)
        return np.asarray(Image.open(io.BytesIO(data)))


def scene(seed: int = 0, size: tuple[int, int] = SIZE) -> Scene:
    return Scene(seed, size, SceneContent(objects=(2, 2), motion=(0.15, 0.2)))


def scene_pairs(video: str, count: int) -> list[VideoPair]:
    pairs = [scene(seed).pair() for seed in range(count)]
    for index, pair in enumerate(pairs):
        pair.meta["video"], pair.meta["times"] = video, [float(index), index + 1.25]
    return pairs


def write_folder(root, videos, pairs=None, **record):
    """A folder of pairs whose records hold `videos`: name → candidates; None writes a record of old."""
    records = []
    for video, candidates in videos.items():
        reasons = [reason for *_, reason in candidates or [] if reason]
        kept = (pairs or {}).get(video, [])
        if kept:
            write_shard(root, video, kept)
        rejected = {reason: reasons.count(reason) for reason in reasons}
        records.append({"video": video, "pairs": len(kept), "rejected": rejected, "error": None} | record)
        content = {"record": records[-1], "settings": SETTINGS}
        path = shard_path(root, video).with_suffix(".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content if candidates is None else content | {"candidates": candidates}))
    write_manifest(root, records, SETTINGS)
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An oddly named clip with three pairs, a clip that is gone with one, and one that is no video."""
    root = tmp_path_factory.mktemp("pairs & <i>more")
    odd = str(write_clip(scene(5), root / "films" / ODD, seconds=4, fps=8))
    broken = root / "films/broken.mp4"
    broken.write_text("no video")
    gone = str(root / "films/gone.mp4")
    videos = {
        odd: [[0.0, 1.5, "cut"], [0.5, 2.0, None], [1.0, 3.0, "motion_too_small"], [1.25, 2.5, "new <reason>"]],
        gone: [[0.0, 1.5, "inconsistent"], [0.5, 2.0, None]],
        str(broken): [[0.0, 1.5, "cut"]],
    }
    return write_folder(root, videos, {odd: scene_pairs(odd, 3), gone: scene_pairs(gone, 1)})


@pytest.fixture(scope="module")
def page(folder):
    return Page(write_preview(folder))


# --- the page


def test_tags_are_closed_and_nothing_is_requested(page):
    assert page.open == []
    for tag, attributes in page.tags:
        assert tag not in ("link", "script", "iframe", "object")
        for name in {"src", "srcset", "href", "data", "poster"} & set(attributes):
            assert attributes[name].startswith("data:image/webp;base64,")
    assert not re.search(r"url\(|@import|https?:", page.markup)


def test_names_are_text_and_not_markup(page, folder):
    assert page.markup.count(ODD) == 0
    assert ODD in page.text
    assert page.shown(f"source of {ODD}, 0.00 s")
    assert "new <reason>" in page.text
    assert f"Pairs in {folder.name}" in page.text


def test_numbers_reasons_and_settings(page):
    assert "4pairs3videos, 2 of them with pairs, 0 with errors5candidates rejected" in page.text
    for reason, count in {"kept": "", "cut": 2, "inconsistent": 1, "motion_too_small": 1}.items():
        assert f"{reason}{REASONS.get(reason, '')}{count}" in page.text
    assert "size64 160min_gap1.0filter.still0.75" in page.text


def test_errors_of_videos_are_told_and_long_lists_end(tmp_path):
    root = write_folder(tmp_path, {f"v{i}.mp4": [] for i in range(LISTED + 7)}, error="stream is <bad>")
    page = Page(write_preview(root))
    assert f"v{LISTED - 1}.mp4" in page.text
    assert f"v{LISTED}.mp4" not in page.text
    assert "7 more are not listed" in page.text
    assert "stream is <bad>" in page.text


def test_no_manifest_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"no pairs in .*manifest.json"):
        write_preview(tmp_path)


# --- pairs


def test_every_pair_has_its_images(page):
    pairs = [alt.removeprefix("tracks of ") for alt in page.shown("tracks of ")]
    assert len(pairs) == 4
    for name in pairs:
        for caption in ("source", "target", *SEEN):
            assert page.pixels(f"{caption} of {name}").shape == (128, WIDTH, 3)


def test_images_show_the_pair(page, folder):
    pair = scene(0).pair()
    stem = shard_path(folder, str(folder / "films" / ODD)).stem
    for role in ("source", "target"):
        shown = page.pixels(f"{role} of {stem}-0")[::2, ::2].astype(float)
        given, other = (getattr(pair, name).permute(1, 2, 0).numpy() for name in (role, OTHER[role]))
        assert np.abs(shown - given).mean() < 6 < np.abs(shown - other).mean()


def test_a_checkbox_holds_source_and_target_of_each(page):
    boxes = [i for i, (tag, attributes) in enumerate(page.tags) if tag == "input"]
    for i in boxes:
        assert page.tags[i - 1][0] == "label"
        assert page.tags[i][1]["type"] == "checkbox"
    first = [page.tags[i + 1][1]["alt"] for i in boxes[:4]]
    second = [page.tags[i + 2][1]["alt"] for i in boxes[:4]]
    assert [alt.replace("source of", "target of") for alt in first] == second


def test_facts(tmp_path):
    pair = scene().pair()
    pair.meta |= {"video": "a.mp4", "times": [0.5, 2.75]}
    for flow in (pair.flow_to_source, pair.flow_to_target):
        flow.zero_()
        flow[0, :, :40] = 10.0  # of 160 pixels
    pair.visible[:] = True
    pair.visible[:, :5] = False  # of 20 tokens
    page = Page(write_preview(write_folder(tmp_path, {"a.mp4": None}, {"a.mp4": [pair]})))
    facts = "video a.mp4 times 0.50 s → 2.75 s time between 2.25 s moving 25.0% flow, median and 99 % 32.0 and 32.0 px"
    assert f"{facts} full colour 32.0 px tokens visible 75.0%" in page.text


def test_pairs_are_spread_over_videos_and_chosen_by_seed(folder):
    def shown(seed: int) -> list[str]:
        return Page(write_preview(folder, count=2, rejected=0, seed=seed)).shown("tracks of ")

    choices = [shown(seed) for seed in range(4)]
    assert all(len({name.rsplit("-", 1)[0] for name in names}) == 2 for names in choices)
    assert len(set(map(tuple, choices))) > 1
    assert shown(0) == choices[0]


def test_a_pair_that_rests_is_shown(tmp_path):
    pair = scene().pair(0.5, 0.5)
    page = Page(write_preview(write_folder(tmp_path, {"a.mp4": None}, {"a.mp4": [pair]})))
    assert page.pixels(page.shown("flow target")[0]).min() > 250


def test_a_page_of_24_pairs_opens_fast(tmp_path):
    one = [scene(size=(320, 512)).pair()]
    page = write_preview(write_folder(tmp_path, {"a.mp4": None}, {"a.mp4": one}))
    assert page.stat().st_size * 24 < 6e6


# --- rejected candidates


def test_rejected_ones_are_shown_with_their_reasons(page):
    shown = page.text.split("Rejected")[-1]
    for reason in ("cut", "motion_too_small"):
        assert f"{reason}{REASONS[reason]}" in shown
    assert "new <reason>" in shown
    assert "inconsistent" not in shown
    for times in ("0.00 s → 1.50 s", "1.00 s → 3.00 s", "1.25 s → 2.50 s"):
        for role in ("source", "target"):
            assert page.pixels(f"{role} of {ODD}, {times}").shape == (128, WIDTH, 3)
    assert not page.shown(f"source of {ODD}, 0.50 s")  # it was kept


def test_their_frames_are_those_of_the_times(page):
    for role, index in {"source": 8, "target": 24}.items():  # 8 frames per second, 32 in all
        shown = page.pixels(f"{role} of {ODD}, 1.00 s → 3.00 s")[::2, ::2].astype(float)
        right, wrong = (scene(5).frame(i / 31) for i in (index, 32 - index))
        assert np.abs(shown - right).mean() < 6 < np.abs(shown - wrong).mean()


def test_a_recorded_time_is_rounded(tmp_path):
    video = str(write_clip(scene(), tmp_path / "v.mp4", seconds=3, fps=6))
    candidate = [round(4 / 6, 4), round(16 / 6, 4), "cut"]  # both rounded up
    page = Page(write_preview(write_folder(tmp_path, {video: [candidate]})))
    for role, index in {"source": 4, "target": 16}.items():
        shown = page.pixels(page.shown(f"{role} of")[0])[::2, ::2].astype(float)
        distance = [np.abs(shown - scene().frame(i / 17)).mean() for i in range(index - 1, index + 2)]
        assert np.argmin(distance) == 1


def test_videos_that_are_gone_or_broken_are_named(page):
    left_out = page.text.split("Left out:")[1]
    assert "gone.mp4 no longer exists" in left_out
    assert "broken.mp4 cannot be read" in left_out


def test_a_frame_that_is_not_there_leaves_its_place_empty(tmp_path):
    video = str(write_clip(scene(), tmp_path / "v.mp4", seconds=2, fps=8))
    page = Page(write_preview(write_folder(tmp_path, {video: [[0.5, 60.0, "not_decoded"]]})))
    assert page.shown("source of v.mp4")
    assert not page.shown("target of v.mp4")
    assert "no image" in page.text
    assert "No pair was kept" in page.text


def test_few_are_spread_over_reasons(folder):
    shown = Page(write_preview(folder, rejected=3)).text.split("Rejected")[-1]
    assert "motion_too_small" in shown
    assert "new <reason>" in shown


def test_older_records_have_no_such_section(tmp_path):
    root = write_folder(tmp_path, {"a.mp4": None}, {"a.mp4": scene_pairs("a.mp4", 1)})
    assert "<h2>Rejected" not in write_preview(root).read_text()


# --- colours and tracks


def hue_and_saturation(x: float, y: float, full: float = 10.0) -> tuple[float, float]:
    red, green, blue = flow_colours(torch.tensor([x, y])[:, None, None], full).flatten().tolist()
    hue, saturation, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
    assert value == 1
    return hue, saturation


@pytest.mark.parametrize("angle", [0.0, 0.4, 1.3, 2.2, 3.0])
def test_opposite_directions_have_opposite_hues(angle):
    x, y = 10 * np.cos(angle), 10 * np.sin(angle)
    there, back = hue_and_saturation(x, y)[0], hue_and_saturation(-x, -y)[0]
    assert abs(there - back) == pytest.approx(0.5, abs=0.01)
    assert there == pytest.approx(angle / (2 * np.pi), abs=0.01)


def test_rest_is_white_and_length_is_saturation():
    assert flow_colours(torch.zeros(2, 3, 4), 10.0).eq(255).all()
    for length, saturation in {2.5: 0.25, 5.0: 0.5, 10.0: 1.0, 40.0: 1.0}.items():
        assert hue_and_saturation(0, length)[1] == pytest.approx(saturation, abs=0.01)


def test_the_legend_is_the_wheel(page):
    wheel = page.pixels(page.shown("colours of flow")[0]).astype(int)
    middle = WIDTH // 2
    assert np.abs(wheel[middle, -4] - [255, 0, 0]).max() < 24  # right is red
    assert np.abs(wheel[middle, 4] - [0, 255, 255]).max() < 24
    assert wheel[middle, middle].min() > 240


def test_tracks_lead_from_the_target_to_the_source():
    """At 320 px width nothing is resized; of 40 tokens across, none is left out."""
    pair = scene(0, (64, WIDTH)).pair()
    centres = token_centres(pair.tracks, pair.size)
    pair.target.fill_(100)
    pair.tracks, pair.visible[:] = centres.clone(), True
    pair.tracks[0, 3, 10] += 40.0  # from its centre at (84, 28) to the right
    pair.visible[6, 2] = False
    image = tracks_image(pair, full=10.0).permute(1, 2, 0).numpy().astype(int)
    dark = np.full(3, 40)
    for x in (84, 100, 120):
        assert image[27:29, x, 0].mean() > 120 > image[27:29, x, 1:].mean()  # red: full to the right
    assert (image[20:27, 100] == dark).all()
    assert (image[27:29, 130] == dark).all()
    assert {int(v) for v in np.unique(image[48:56, 16:24])} == {40, 180}
    changed = (image != dark).any(-1)
    changed[25:31, 80:127] = changed[48:56, 16:24] = False
    assert not changed.any()
