"""From videos to pairs: which frames, which flow, which pairs are turned away, what is written."""

import errno
import json
import os
import signal
import struct
import time
import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from commandline import CONTEXT, call_forked, fork_pools
from PIL import Image

from fp_lightning.errors import InputError
from fp_lightning.files import locked
from fp_lightning.media.decoding import VideoError
from fp_lightning.media.display import fit
from fp_lightning.media.finding import list_videos
from fp_lightning.media.video import duration, read_frames, stream_frames
from fp_lightning.pairs.build import build_pairs
from fp_lightning.pairs.candidates import build_video, choose_windows, make_pair, read_windows
from fp_lightning.pairs.engines import Task, run_local
from fp_lightning.pairs.filters import PairFilter
from fp_lightning.pairs.flow.dis import dis_flow
from fp_lightning.pairs.motion import chained_flow, continuity, link
from fp_lightning.pairs.settings import PairSettings
from fp_lightning.pairs.shards import PairStore
from fp_lightning.pairs.tracks import sample, tracks_from_flow
from fp_lightning.scenes.clips import write_clip
from fp_lightning.scenes.content import SceneContent
from fp_lightning.scenes.scene import Scene

SIZE = (96, 160)
SETTINGS = PairSettings(size=SIZE, pairs_per_video=2, candidates=6)
MOTION = SceneContent(objects=(2, 3), motion=(0.05, 0.15))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two good clips; the second lies in a folder of its own."""
    root = tmp_path_factory.mktemp("clips")
    write_clip(Scene(1, SIZE, MOTION), root / "one.mp4", seconds=3, fps=8)
    write_clip(Scene(2, SIZE, MOTION), root / "more" / "two.mp4", seconds=3, fps=8)
    return root


@pytest.fixture(scope="module")
def built(clips, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "pairs"
    return out, build_pairs([clips], out, SETTINGS)


def write_video(path, images, fps=8):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt = *images[0].shape[:2], "yuv420p"
        stream.options = {"crf": "4"}
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
    assert "frames after 0.5 s are missing" in (clip.problem or "")


def test_the_last_frame_answers_times_shortly_after_it(tmp_path):
    path = counting_video(tmp_path / "v.mp4")  # the last frame is at 2.875 s
    assert list(read_frames(path, [3.0], (64, 96)).frames) == [3.0]
    with pytest.raises(VideoError, match="gives no frame"):
        read_frames(path, [3.2], (64, 96))


def test_frames_are_streamed_in_order_of_time(tmp_path):
    path = counting_video(tmp_path / "v.mp4")
    wanted = [time for time, _, _ in stream_frames(path, [2.0, 0.5, 1.25], (64, 96))]
    assert wanted == [0.5, 1.25, 2.0]


def test_a_gif_is_a_video(tmp_path):
    images = [Image.fromarray(np.full((40, 60, 3), 10 * i, np.uint8)) for i in range(20)]
    images[0].save(tmp_path / "v.gif", save_all=True, append_images=images[1:], duration=100)
    assert list_videos([tmp_path]) == [tmp_path / "v.gif"]
    assert read_frames(tmp_path / "v.gif", [1.0], (40, 60)).frames[1.0][1].mean() == pytest.approx(100, abs=6)


def test_variable_frame_rates_keep_their_times(tmp_path):
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=100)
        stream.width = stream.height = 64
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 100)
        for level, hundredths in ((10, 0), (60, 10), (110, 150), (160, 155), (210, 300)):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), level, np.uint8), format="rgb24")
            frame.pts, frame.time_base = hundredths, Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frames = read_frames(path, [0.05, 1.0, 1.52], (64, 64)).frames
    assert {t: a for t, (a, _) in frames.items()} == pytest.approx({0.05: 0.1, 1.0: 1.5, 1.52: 1.55}, abs=2e-3)
    assert [round(image.mean() / 10) for _, image in frames.values()] == [6, 11, 16]


def frame_folder(path: Path, count: int = 60) -> Path:
    path.mkdir(parents=True)
    for i in range(count):  # 24 frames per second, numbered without leading zeros
        Image.fromarray(np.full((40, 60, 3), 4 * i, np.uint8)).save(path / f"frame{i}.png")
    return path


def test_a_folder_of_images_is_a_video_in_the_order_of_its_numbers(tmp_path):
    folder = frame_folder(tmp_path / "clips" / "dog")
    assert list_videos([tmp_path / "clips"]) == [folder]
    assert duration(folder) == pytest.approx(60 / 24)
    frames = read_frames(folder, [0.5, 2.0], (40, 56)).frames
    assert [frames[t][1].mean() for t in (0.5, 2.0)] == pytest.approx([4 * 12, 4 * 48])


def test_images_beside_videos_are_no_video(clips, tmp_path):
    folder = frame_folder(tmp_path / "dog", 3)
    (folder / "v.mp4").write_bytes((clips / "one.mp4").read_bytes())
    assert list_videos([tmp_path]) == [folder / "v.mp4"]


def test_odd_sizes_are_read(tmp_path):
    images = [Image.fromarray(np.full((37, 61, 3), 60 * i, np.uint8)) for i in range(3)]
    images[0].save(tmp_path / "v.gif", save_all=True, append_images=images[1:], duration=500)
    assert read_frames(tmp_path / "v.gif", [0.4], (64, 96)).frames[0.4][1].shape == (64, 96, 3)


def test_a_video_without_frames_is_a_video_error(tmp_path):
    with av.open(str(tmp_path / "v.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
    with pytest.raises(VideoError, match=r"v\.mkv"):
        build_video(tmp_path / "v.mkv", SETTINGS)


def test_sound_alone_is_a_video_error(tmp_path):
    with av.open(str(tmp_path / "v.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match="no video stream"):
        duration(tmp_path / "v.mkv")


# --- flow, tracks, filter


def two_frames(seed: int = 3):
    scene = Scene(seed, (128, 256), SceneContent(objects=(1, 1), motion=(0.06, 0.08), turn=0.0, growth=0.0))
    return scene, scene.frame(0.0), scene.frame(1.0)


def far_frames(seed: int, count: int = 9):
    """Frames of a scene that moves by up to a third of its width."""
    scene = Scene(seed, (160, 256), SceneContent(objects=(1, 2), motion=(0.2, 0.33)))
    return scene, [scene.frame(t, 2) for t in np.linspace(0, 1, count)]


def flow_between(frames):
    return chained_flow(frames, link(frames, dis_flow), dis_flow)


def test_dis_flow_points_from_first_to_second():
    scene, source, target = two_frames()
    inside = scene.layer(scene._grid(1), 1.0) == 0
    found = dis_flow([target], [source])[0][:, inside].median(1).values
    assert found.tolist() == pytest.approx(scene.flow(1.0, 0.0)[:, inside].mean(1).tolist(), abs=1.0)


def test_dis_flow_goes_on_from_its_start():
    scene, frames = far_frames(2, 2)
    inside = torch.from_numpy(scene.layer(scene._grid(1), 1.0) >= 0)
    true = torch.from_numpy(np.ascontiguousarray(scene.flow(1.0, 0.0)))
    alone = dis_flow(frames[1:], frames[:1])[0]
    helped = dis_flow(frames[1:], frames[:1], true[None])[0]
    assert (helped - true).norm(dim=0)[inside].median() < 1 < (alone - true).norm(dim=0)[inside].median()


def test_chained_tracks_beat_one_long_jump():
    chained, jump = [], []
    for seed in (1, 2, 4):
        scene, frames = far_frames(seed)
        tracks, visible = (torch.from_numpy(np.ascontiguousarray(x)) for x in scene.tracks(1.0, 0.0))
        moving = visible & torch.from_numpy(scene.layer(scene._grid(8), 1.0) >= 0)
        for errors, used in ((chained, frames), (jump, [frames[0], frames[-1]])):
            errors.append((tracks_from_flow(*flow_between(used))[0] - tracks).norm(dim=0)[moving])
    assert torch.cat(chained).median() < 1
    assert torch.cat(jump).median() > 10


def test_visibility_agrees_with_the_truth():
    agree = {"both": 0, "one": 0}
    for seed in (1, 2, 4):
        scene, frames = far_frames(seed)
        visible = torch.from_numpy(scene.tracks(1.0, 0.0)[1])
        found = tracks_from_flow(*flow_between(frames))[1]
        agree["both"] += int((visible & found).sum())
        agree["one"] += int((visible ^ found).sum())
    assert 2 * agree["both"] / (2 * agree["both"] + agree["one"]) > 0.95  # F1


def test_what_does_not_move_rests():
    scene, frames = far_frames(4)
    rests = torch.from_numpy(np.ascontiguousarray(scene.flow(1.0, 0.0) == 0)).all(0)  # also what was hidden before
    assert (flow_between(frames)[0][:, rests] == 0).all(0).float().mean() > 0.9


def test_rest_survives_a_change_of_light():
    scene, frames = far_frames(4)
    dimmed = [(frame * (1 - 0.02 * i)).astype(np.uint8) for i, frame in enumerate(frames)]
    rests = torch.from_numpy(np.ascontiguousarray(scene.flow(1.0, 0.0) == 0)).all(0)
    assert (flow_between(dimmed)[0][:, rests] == 0).all(0).float().mean() > 0.9


def test_continuity_tells_a_cut_from_motion():
    _, frames = far_frames(4)
    assert continuity(frames) > 0.6
    assert continuity([*frames[:4], *far_frames(7)[1][4:]]) < 0.4


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
    scene = Scene(5, (128, 128), SceneContent(objects=(2, 3)))
    pair = scene.pair()
    tracks, visible = tracks_from_flow(pair.flow_to_source, pair.flow_to_target)
    assert (visible == pair.visible).float().mean() > 0.95
    both = visible & pair.visible
    assert (tracks - pair.tracks).norm(dim=0)[both].quantile(0.9) < 1.0


def reason_for(*frames) -> str | None:
    result = make_pair([np.ascontiguousarray(frame) for frame in frames], PairSettings(size=(128, 256)))
    return result if isinstance(result, str) else None


def test_a_pair_with_a_moving_object_is_kept():
    _, source, target = two_frames()
    assert reason_for(source, target) is None


def test_what_appears_is_not_visible_in_the_source():
    scene, source, target = two_frames()
    target = target.copy()
    target[8:40, 8:40] = 255 - target[8:40, 8:40] // 4  # something pale comes in
    source[8:40, 8:40] //= 4
    rest = torch.from_numpy(np.stack(np.meshgrid(np.arange(32) * 8.0 + 4, np.arange(16) * 8.0 + 4)))
    explained = PairFilter().explained(rest, source, target)
    assert not explained[1:5, 1:5].any()
    still = torch.from_numpy(scene.layer(scene._grid(8), 1.0) < 0) & torch.from_numpy(scene.tracks(1.0, 0.0)[1])
    still[0:6, 0:6] = False
    assert explained[still].float().mean() > 0.95


def test_a_still_pair_is_rejected():
    _, source, _ = two_frames()
    assert reason_for(source, source) == "motion_too_small"


def test_a_moving_camera_is_rejected():
    scene = Scene(3, (128, 288))
    image = scene.frame(0.0)
    assert reason_for(image[:, :256], image[:, 6:262]) == "camera_or_global_motion"


def test_a_cut_is_rejected():
    assert reason_for(Scene(3, (128, 256)).frame(0.0), Scene(6, (128, 256)).frame(0.0)) == "cut"


def test_a_fade_is_rejected():
    _, source, target = two_frames()
    other = Scene(8, (128, 256)).frame(0.0)
    assert reason_for(source, (0.6 * target + 0.4 * other).astype(np.uint8)) is not None


def test_too_large_motion_is_rejected():
    pair = Scene(5, (256, 256), SceneContent(objects=(1, 1), motion=(0.15, 0.18))).pair()
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
    assert manifest["settings"]["filter"]["min_moving"] == PairFilter().min_moving
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
    for image, at in zip((pair.source, pair.target), pair.meta["times"], strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), frames[at][1])


def test_no_two_pairs_of_a_video_are_alike(built):
    store = PairStore(built[0])
    starts = [(store.videos[i], store[i].meta["times"][0]) for i in range(len(store))]
    assert len(set(starts)) == len(starts)


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a folder of pairs; its page tells the folder's name."""
    return {
        str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file() and p.suffix != ".html"
    }


def test_result_does_not_depend_on_workers(built, clips, tmp_path):
    out, manifest = built
    assert build_pairs([clips], tmp_path / "two", SETTINGS, workers=2) == manifest
    assert contents(tmp_path / "two") == contents(out)


def build_by_ray(clips: Path, out: Path) -> None:
    import ray

    build_pairs([clips], out, SETTINGS, workers=2, engine="ray")
    ray.shutdown()


def test_ray_gives_the_same_pairs(built, clips, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'fp-lightning[ray]'")
    environment = {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(Path(__file__).parents[2])}  # of Ray's processes
    call_forked(build_by_ray, clips, tmp_path / "ray", environment=environment)
    assert contents(tmp_path / "ray") == contents(built[0])


def build_after(ready, clips: Path, out: Path) -> None:
    """Set `ready`, then build or go on."""
    ready.set()
    build_pairs([clips], out, SETTINGS, resume=True)


def test_killed_at_any_instant_and_resumed_it_ends_alike(built, clips, tmp_path):
    for seconds in (0.05, 0.4, 1.0):
        ready = CONTEXT.Event()
        process = CONTEXT.Process(target=build_after, args=(ready, clips, tmp_path / "out"))
        process.start()
        assert ready.wait(120)
        time.sleep(seconds)
        process.kill()
        process.join()
    assert build_pairs([clips], tmp_path / "out", SETTINGS, resume=True) == built[1]
    assert contents(tmp_path / "out") == contents(built[0])


def test_no_more_frames_are_held_than_open_windows_need(tmp_path):
    path = write_video(tmp_path / "v.mp4", [np.full((64, 96, 3), i, np.uint8) for i in range(25 * 8)])
    windows = [(float(t), t + 1.5) for t in range(0, 22, 2)]
    tracemalloc.start()
    for _ in read_windows(path, windows, PairSettings(size=(640, 960), step=0.125)):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * 2 * 13 * 640 * 960 * 3  # of 143 frames


def deadly(task: Task) -> dict:
    """Stands for a decoder that crashes on one video."""
    if task.path == "bad":
        os.kill(os.getpid(), signal.SIGKILL)
    return {"video": task.path, "pairs": 1, "rejected": {}, "error": None}


def test_a_video_that_kills_its_process_costs_no_other(tmp_path, monkeypatch):
    fork_pools(monkeypatch)
    tasks = [Task(path, tmp_path, SETTINGS) for path in ("a", "b", "bad", "c", "d", "e")]
    records = {task.path: record for task, record in run_local(deadly, tasks, workers=2)}
    assert sorted(records) == ["a", "b", "bad", "c", "d", "e"]
    assert "killed the process" in records.pop("bad")["error"]
    assert all(record["pairs"] == 1 for record in records.values())


def test_two_runs_on_one_folder_are_refused(clips, tmp_path):
    with locked(tmp_path / "out"), pytest.raises(InputError, match="another run is writing"):
        build_pairs([clips], tmp_path / "out", SETTINGS)


def test_a_full_disk_is_an_error_of_the_video(clips, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fp_lightning.pairs.build.write_shard", full)
    with pytest.raises(InputError, match="No space left on device"):
        build_pairs([clips], tmp_path / "out", SETTINGS)
    records = json.loads((tmp_path / "out" / "manifest.json").read_text())["per_video"]
    assert all("No space left on device" in record["error"] for record in records)


def test_a_folder_that_cannot_be_written_is_one_line(clips, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match=r"cannot write .*out: File exists; .*choose a folder"):
        build_pairs([clips], tmp_path / "out", SETTINGS)


def test_windows_have_the_frames_between_their_ends(tmp_path):
    path = write_video(tmp_path / "v.mp4", [np.full((64, 96, 3), i, np.uint8) for i in range(25 * 8)])
    windows = [(float(t), t + 1.5) for t in range(0, 22, 2)]
    frames = [found for _, found in read_windows(path, windows, PairSettings(size=(64, 96), step=0.25))]
    assert [len(found) for found in frames] == [7] * len(windows)
    assert [found[0][0] for found in frames] == pytest.approx([start for start, _ in windows])


def test_a_repeated_scene_gives_no_duplicates(tmp_path):
    scene = Scene(1, SIZE, MOTION)
    once = [scene.frame(t) for t in np.linspace(0, 1, 16)]
    write_video(tmp_path / "loop.mp4", once * 4)
    settings = PairSettings(size=SIZE, min_gap=1.0, max_gap=1.2, candidates=30, pairs_per_video=30)
    result = build_video(tmp_path / "loop.mp4", settings)
    assert result.rejected["duplicate"] > 0
    shown = [tuple(round(time % 2, 3) for time in pair.meta["times"]) for pair in result.pairs]
    assert len(shown) == len(set(shown))


def test_candidates_are_told_with_their_reason(clips):
    result = build_video(clips / "one.mp4", SETTINGS)
    kept = [candidate for candidate in result.candidates if candidate[2] is None]
    assert [list(candidate[:2]) for candidate in kept] == [pair.meta["times"] for pair in result.pairs]
    assert len(result.candidates) == len(kept) + sum(result.rejected.values())


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
