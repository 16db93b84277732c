"""From videos to pairs: which frames, which flow, which pairs are turned away, what is written."""

import json
import struct

import av
import cv2
import numpy as np
import pytest
import torch

from fp_lightning.errors import InputError
from fp_lightning.pairs.build import PairSettings, build_pairs, build_video, choose_windows, make_pair
from fp_lightning.pairs.filters import PairFilter
from fp_lightning.pairs.flow import dis_flow, settle
from fp_lightning.pairs.tracks import sample, tracks_from_flow
from fp_lightning.pairs.video import VideoError, duration, fit, list_videos, read_frames
from fp_lightning.scenes import Scene, write_clip
from fp_lightning.shards import PairStore

SIZE = (96, 160)
SETTINGS = PairSettings(size=SIZE, pairs_per_video=2, candidates=6)
MOTION = {"objects": (2, 3), "motion": (0.05, 0.15)}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two good clips; the second lies in a folder of its own."""
    root = tmp_path_factory.mktemp("clips")
    write_clip(Scene(1, SIZE, **MOTION), root / "one.mp4", seconds=3, fps=8)
    write_clip(Scene(2, SIZE, **MOTION), root / "more" / "two.mp4", seconds=3, fps=8)
    return root


@pytest.fixture(scope="module")
def built(clips, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "pairs"
    return out, build_pairs([clips], out, SETTINGS)


def write_video(path, images, fps=8):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt = *images[0].shape[:2], "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode())
    return path


def counting_video(path, count=24, fps=8):
    """Frame i is grey of level 10 · i."""
    return write_video(path, [np.full((64, 96, 3), 10 * i, np.uint8) for i in range(count)], fps)


# --- video


def test_folders_are_searched_and_files_listed_once(clips):
    found = list_videos([clips / "one.mp4", clips])
    assert [p.name for p in found] == ["one.mp4", "two.mp4"]


def test_a_folder_without_videos_is_an_error(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(InputError, match="holds no video"):
        list_videos([tmp_path])


def test_a_missing_path_is_an_error(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        list_videos([tmp_path / "gone.mp4"])


def test_frames_answer_their_times(tmp_path):
    path = counting_video(tmp_path / "v.mp4")
    clip = read_frames(path, [1.0, 0.3], (64, 96))  # at 8 frames per second
    assert {wanted: time for wanted, (time, _) in clip.frames.items()} == pytest.approx({0.3: 0.375, 1.0: 1.0})
    assert clip.frames[1.0][1].mean() == pytest.approx(80, abs=4)
    assert clip.frames[0.3][1].mean() == pytest.approx(30, abs=4)
    assert clip.problem is None


def test_far_frames_are_found_by_seeking(tmp_path):
    path = write_video(tmp_path / "v.mp4", [np.full((64, 64, 3), i, np.uint8) for i in range(240)], fps=4)
    clip = read_frames(path, [2.0, 55.0], (64, 64))
    assert clip.frames[55.0][0] == pytest.approx(55.0)
    assert clip.frames[55.0][1].mean() == pytest.approx(220, abs=4)


def test_duration(tmp_path):
    assert duration(counting_video(tmp_path / "v.mp4")) == pytest.approx(3.0)


def test_fit_crops_the_centre_and_keeps_aspect():
    image = np.zeros((100, 300, 3), np.uint8)
    image[:, 100:200] = 255
    assert fit(image, (50, 50)).min() == 255  # just the central square


def test_phone_video_is_turned_upright(tmp_path):
    image = np.zeros((64, 96, 3), np.uint8)
    image[:, :48, 0] = 255  # red left half
    path = write_video(tmp_path / "v.mp4", [image] * 8)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 64 << 16, 0, 1 << 30)
    path.write_bytes(data)
    _, upright = read_frames(path, [0.0], (96, 64)).frames[0.0]
    reference = cv2.VideoCapture(str(path)).read()[1][..., ::-1]  # OpenCV turns by itself
    assert reference.shape == (96, 64, 3)
    assert np.abs(upright.astype(int) - reference).mean() < 8


def test_the_largest_stream_is_read(tmp_path):
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=8) for _ in range(2)]
        for stream, side in zip(streams, (32, 64), strict=True):
            stream.width = stream.height = side
            stream.pix_fmt = "yuv420p"
        for _ in range(8):
            for stream, side in zip(streams, (32, 64), strict=True):
                image = np.full((side, side, 3), 3 * side, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode())
    assert read_frames(path, [0.0], (64, 64)).frames[0.0][1].mean() == pytest.approx(192, abs=4)


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100])
def test_an_unreadable_file_is_a_video_error(tmp_path, content):
    path = tmp_path / "v.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError, match=r"v\.mp4 cannot be read"):
        duration(path)


def test_a_video_that_ends_early_gives_what_it_has_and_says_so(tmp_path):
    clip = read_frames(counting_video(tmp_path / "v.mp4"), [0.5, 9.0], (64, 96))
    assert list(clip.frames) == [0.5]
    assert "ends at 2.9 s" in (clip.problem or "")


# --- flow, tracks, filter


def two_frames(seed: int = 3):
    scene = Scene(seed, (128, 256), objects=(1, 1), motion=(0.06, 0.08), turn=0.0, growth=0.0)
    return scene, scene.frame(0.0), scene.frame(1.0)


def test_dis_flow_points_from_first_to_second():
    scene, source, target = two_frames()
    inside = scene.layer(scene._grid(1), 1.0) == 0
    found, true = dis_flow(target, source)[:, inside].median(1).values, scene.flow(1.0, 0.0)[:, inside].mean(1)
    assert found.tolist() == pytest.approx(true.tolist(), abs=1.0)


def test_settled_flow_rests_where_nothing_moves():
    scene, source, target = two_frames()
    rest = torch.from_numpy(scene.flow(1.0, 0.0) == 0).all(0)
    wrong = torch.full((2, 128, 256), 7.0)
    settled = settle(wrong, target, source)
    assert (settled[:, rest] == 0).float().mean() > 0.95


def test_settled_flow_keeps_true_motion():
    scene, source, target = two_frames()
    true = torch.from_numpy(scene.flow(1.0, 0.0))
    moves = true.norm(dim=0) > 0
    assert (settle(true, target, source) - true)[:, moves].abs().amax(0).lt(0.1).float().mean() > 0.8


def test_sampling_is_exact_for_a_linear_field():
    x = torch.arange(16) + 0.5
    field = (2 * x).expand(1, 16, 16)
    assert sample(field, torch.tensor([[[3.25]], [[8.0]]])).item() == pytest.approx(6.5)


def test_tracks_follow_the_flow_from_token_centres():
    flow = torch.zeros(2, 64, 64)
    flow[0] = -8
    tracks, visible = tracks_from_flow(flow, -flow)
    assert tracks[:, 2, 3].tolist() == [3 * 8 + 4 - 8, 2 * 8 + 4]
    assert visible[:, 1:].all()
    assert not visible[:, 0].any()  # came from outside


def test_tracks_of_exact_flow_agree_with_the_scene():
    scene = Scene(5, (128, 128), objects=(2, 3))
    pair = scene.pair()
    tracks, visible = tracks_from_flow(pair.flow_to_source, pair.flow_to_target)
    assert (visible == pair.visible).float().mean() > 0.95
    both = visible & pair.visible
    assert (tracks - pair.tracks).norm(dim=0)[both].quantile(0.9) < 1.0


def reason_for(source, target) -> str | None:
    result = make_pair(np.ascontiguousarray(source), np.ascontiguousarray(target), PairSettings(size=(128, 256)))
    return result if isinstance(result, str) else None


def test_a_pair_with_a_moving_object_is_kept():
    _, source, target = two_frames()
    assert reason_for(source, target) is None


def test_a_still_pair_is_rejected():
    _, source, _ = two_frames()
    assert reason_for(source, source) == "motion_too_small"


def test_a_moving_camera_is_rejected():
    scene = Scene(3, (128, 288))
    image = scene.frame(0.0)
    assert reason_for(image[:, :256], image[:, 6:262]) == "camera_or_global_motion"


def test_a_cut_is_rejected():
    assert reason_for(Scene(3, (128, 256)).frame(0.0), Scene(6, (128, 256)).frame(0.0)) is not None


def test_a_fade_is_rejected():
    _, source, target = two_frames()
    other = Scene(8, (128, 256)).frame(0.0)
    assert reason_for(source, (0.6 * target + 0.4 * other).astype(np.uint8)) is not None


def test_too_large_motion_is_rejected():
    pair = Scene(5, (256, 256), objects=(1, 1), motion=(0.15, 0.18)).pair()
    assert PairFilter().reason(pair) is None
    assert PairFilter(largest=60).reason(pair) == "motion_too_large"


# --- building


def test_windows_keep_gap_spacing_and_length():
    windows = sorted(choose_windows(20.0, PairSettings(), np.random.default_rng(0)))
    gaps = [b - a for a, b in windows]
    assert len(windows) == 32
    assert min(gaps) > 1.0
    assert max(gaps) <= 3.0
    assert max(b for _, b in windows) <= 20.0
    assert np.diff([a for a, _ in windows]).min() >= 0.25


def test_a_video_shorter_than_the_gap_has_no_windows():
    assert choose_windows(0.9, PairSettings(), np.random.default_rng(0)) == []


def test_manifest_has_the_agreed_form(built, clips):
    out, manifest = built
    assert json.loads((out / "manifest.json").read_text()) == manifest
    assert list(manifest) == ["videos", "pairs", "rejected", "settings", "per_video"]
    assert manifest["videos"] == 2
    assert manifest["settings"]["size"] == list(SIZE)
    for record in manifest["per_video"]:
        assert list(record) == ["video", "pairs", "rejected", "error"]
        assert record["video"].startswith(str(clips))


def test_manifest_counts_what_is_stored(built):
    out, manifest = built
    assert len(PairStore(out)) == manifest["pairs"] == sum(r["pairs"] for r in manifest["per_video"]) > 0


def test_stored_pairs_are_more_than_the_gap_apart(built):
    for index in range(len(store := PairStore(built[0]))):
        source, target = store[index].meta["times"]
        assert 1.0 < target - source < 3.2


def test_stored_images_are_the_frames_of_their_times(built):
    pair = PairStore(built[0])[0]
    frames = read_frames(pair.meta["video"], pair.meta["times"], SIZE).frames
    for image, time in zip((pair.source, pair.target), pair.meta["times"], strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), frames[time][1])


def test_no_two_pairs_of_a_video_are_alike(built):
    store = PairStore(built[0])
    starts = [(store.videos[i], store[i].meta["times"][0]) for i in range(len(store))]
    assert len(set(starts)) == len(starts)


def test_result_does_not_depend_on_workers(built, clips, tmp_path):
    out, manifest = built
    assert build_pairs([clips], tmp_path / "two", SETTINGS, workers=2) == manifest
    for path in (out / "shards").iterdir():
        assert (tmp_path / "two" / "shards" / path.name).read_bytes() == path.read_bytes()


def test_a_damaged_video_is_recorded_and_the_others_go_on(clips, tmp_path):
    whole = (clips / "one.mp4").read_bytes()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "broken.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in" / "good.mp4").write_bytes(whole)
    manifest = build_pairs([tmp_path / "in"], tmp_path / "out", SETTINGS)
    broken, good = manifest["per_video"]
    assert "broken.mp4 cannot be read" in broken["error"]
    assert broken["pairs"] == 0
    assert good["error"] is None
    assert good["pairs"] == manifest["pairs"] > 0


def test_a_short_video_is_counted_as_such(tmp_path):
    path = write_clip(Scene(1, (64, 64)), tmp_path / "short.mp4", seconds=1, fps=8)
    assert build_video(path, SETTINGS).rejected == {"too_short": 1}


def test_a_used_folder_is_refused(built, clips):
    with pytest.raises(InputError, match="--resume"):
        build_pairs([clips], built[0], SETTINGS)


def test_resume_reads_no_finished_video_and_ends_alike(clips, tmp_path, monkeypatch):
    first = build_pairs([clips / "one.mp4"], tmp_path / "out", SETTINGS)
    read = []
    monkeypatch.setattr(
        "fp_lightning.pairs.build.build_video", lambda path, s: read.append(path) or build_video(path, s)
    )
    both = build_pairs([clips / "one.mp4", clips / "more"], tmp_path / "out", SETTINGS, resume=True)
    assert read == [str(clips / "more" / "two.mp4")]
    assert both["per_video"][0] == first["per_video"][0]
    assert both["pairs"] == len(PairStore(tmp_path / "out"))


def test_resume_with_other_settings_is_refused(clips, tmp_path):
    build_pairs([clips / "one.mp4"], tmp_path / "out", SETTINGS)
    with pytest.raises(InputError, match="other settings"):
        build_pairs([clips / "one.mp4"], tmp_path / "out", PairSettings(size=SIZE), resume=True)


def test_nothing_kept_is_an_error_that_leaves_a_manifest(tmp_path):
    write_video(tmp_path / "still.mp4", [Scene(1, SIZE).frame(0.0)] * 24)
    with pytest.raises(InputError, match=r"no pair was kept of 1 videos .*motion_too_small"):
        build_pairs([tmp_path / "still.mp4"], tmp_path / "out", SETTINGS)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["pairs"] == 0
    assert manifest["rejected"]["motion_too_small"] > 0


def test_bad_settings_are_named_together():
    with pytest.raises(InputError, match=r"multiples of 8.*flow magic is unknown; known: dis"):
        PairSettings(size=(100, 160), flow="magic")
