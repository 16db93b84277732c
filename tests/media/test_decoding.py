"""Which stream is the film, when its frames are shown, how long it is, and what broken files give."""

import os

import av
import numpy as np
import pytest
from films import add_sound, levels, mux_again, write_film
from PIL import Image

from fp_lightning.media.decoding import VideoError, opened
from fp_lightning.media.video import duration, read_frames

B_FRAMES = {"bf": "3", "x264-params": "b-adapt=0:scenecut=0"}
NAMES = ("v.mp4", "v.mkv", "v.avi", "v.ts", "v.flv", "v.mov", "v.h264")


def shown(path, times):
    """The number of the frame at each time, by its level, and its time."""
    clip = read_frames(path, times, (64, 96))
    assert clip.problem is None
    return [(round(image.mean() / 6), time) for time, image in clip.frames.values()]


def write_with_cover(path, cover_is_marked=True, count=24):
    """A film of 96 × 64 pixels with a green picture of 600 × 600."""
    green = np.full((600, 600, 3), (0, 255, 0), np.uint8)
    with av.open(str(path), "w") as container:
        film, cover = container.add_stream("libx264", rate=8), container.add_stream("mjpeg", rate=1)
        film.height, film.width, film.pix_fmt = 64, 96, "yuv420p"
        cover.height, cover.width, cover.pix_fmt = 600, 600, "yuvj420p"
        if cover_is_marked:
            cover.disposition = av.stream.Disposition.attached_pic
        for image in levels(count):
            container.mux(film.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(film.encode())
        frame = av.VideoFrame.from_ndarray(green, format="rgb24")
        frame.pts = 0
        container.mux([*cover.encode(frame), *cover.encode()])
    return path


@pytest.mark.parametrize("marked", [True, False])
def test_a_cover_is_not_the_film(tmp_path, marked):
    path = write_with_cover(tmp_path / "v.mp4", marked)
    image = read_frames(path, [1.0], (64, 96)).frames[1.0][1]
    assert image.mean() == pytest.approx(80, abs=3)
    assert duration(path) == pytest.approx(3)


def test_an_attached_picture_of_matroska_is_not_the_film(tmp_path):
    picture = tmp_path / "cover.jpg"
    Image.new("RGB", (600, 600), "green").save(picture)
    with av.open(str(tmp_path / "v.mkv"), "w") as container:
        film = container.add_stream("libx264", rate=8)
        film.height, film.width, film.pix_fmt = 64, 96, "yuv420p"
        container.add_attachment("cover.jpg", "image/jpeg", picture.read_bytes())
        for image in [*levels(24), None]:
            frame = None if image is None else av.VideoFrame.from_ndarray(image, format="rgb24")
            container.mux(film.encode(frame))
    assert read_frames(tmp_path / "v.mkv", [1.0], (64, 96)).frames[1.0][1].mean() == pytest.approx(80, abs=3)


def test_a_song_with_a_cover_has_no_film(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=16000, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(levels(1, (64, 64))[0], format="rgb24")
        frame.pts = 0
        container.mux([*cover.encode(frame), *cover.encode()])
        add_sound(container, sound, 1)
    with pytest.raises(VideoError, match="no video stream, only a cover picture"):
        duration(path)


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.ts"])
def test_sound_after_the_last_frame_does_not_lengthen_the_film(tmp_path, name):
    with av.open(str(tmp_path / name), "w") as container:
        film, sound = container.add_stream("libx264", rate=8), container.add_stream("aac", rate=16000, layout="mono")
        film.height, film.width, film.pix_fmt = 64, 96, "yuv420p"
        for image in [*levels(24), None]:
            frame = None if image is None else av.VideoFrame.from_ndarray(image, format="rgb24")
            container.mux(film.encode(frame))
        add_sound(container, sound, 9)
    assert duration(tmp_path / name) == pytest.approx(3, abs=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_frames_have_their_times_in_every_container(tmp_path, name):
    path = write_film(tmp_path / name, levels(40, step=6), options=B_FRAMES)
    offset = 0.125 if name == "v.avi" else 0  # its first frame comes after the time that its decoder needs
    assert duration(path) == pytest.approx(5)
    assert shown(path, [0.5, 1.0, 4.75]) == [
        (round(8 * (time - offset)), pytest.approx(time, abs=2e-3)) for time in (0.5, 1.0, 4.75)
    ]


def test_stamps_in_the_order_of_decoding_are_sorted(tmp_path):
    def lie(packet):
        packet.pts = packet.dts

    path = write_film(tmp_path / "v.mkv", levels(40, step=6), options=B_FRAMES, stamp=lie)
    with opened(path) as film:
        times = [time for time, _ in film.frames()]
    assert times == pytest.approx([i / 8 for i in range(40)], abs=2e-3)


def test_far_frames_of_a_lying_container_are_found(tmp_path):
    path = write_film(tmp_path / "v.avi", levels(200, step=1), fps=4, options={**B_FRAMES, "g": "20"})
    images = read_frames(path, [2.0, 45.0], (64, 96)).frames
    assert [round(image.mean()) for _, image in images.values()] == pytest.approx([7, 179], abs=1)


def test_far_frames_without_time_stamps_are_found(tmp_path):
    path = write_film(tmp_path / "v.h264", levels(200, step=1), fps=4, options=B_FRAMES)
    images = read_frames(path, [2.0, 45.0], (64, 96)).frames
    assert [round(image.mean()) for _, image in images.values()] == pytest.approx([8, 180], abs=1)


def test_a_file_that_cannot_be_searched_is_decoded_from_the_start(tmp_path, monkeypatch):
    path = write_film(tmp_path / "v.mkv", levels(200, step=1), fps=4, options={"g": "20"})

    def overshoot(self, time):
        self.container.seek(int((time + 4 if time else 0) / self.unit), stream=self.stream, backward=not time)

    monkeypatch.setattr("fp_lightning.media.decoding.Film._seek", overshoot)
    with opened(path) as film:
        assert next(film.frames(20.0))[0] == 0.0
    images = read_frames(path, [2.0, 30.0, 45.0], (64, 96)).frames
    assert [round(image.mean()) for _, image in images.values()] == pytest.approx([8, 120, 180], abs=1)


def test_the_last_frame_of_a_slow_film_serves_until_its_end(tmp_path):
    path = write_film(tmp_path / "v.mp4", levels(6, step=6), fps=1)
    assert duration(path) == pytest.approx(6)
    assert shown(path, [5.0, 5.9]) == [(5, 5.0), (5, 5.0)]


def test_a_gap_between_frames_is_kept(tmp_path):
    source = write_film(tmp_path / "source.mp4", levels(40, step=6), options={"bf": "0"})

    def gap(packet):
        late = int(20 / packet.time_base) if packet.pts * packet.time_base >= 2.5 else 0
        packet.pts, packet.dts = packet.pts + late, packet.dts + late

    path = mux_again(source, tmp_path / "v.mkv", gap)
    assert shown(path, [2.375, 2.5, 22.5, 23.0]) == [
        (19, pytest.approx(2.375)),
        (20, pytest.approx(22.5)),
        (20, pytest.approx(22.5)),
        (24, pytest.approx(23.0)),
    ]


def test_stamps_that_start_again_go_on(tmp_path):
    parts = [write_film(tmp_path / f"{i}.ts", levels(20, step=6)) for i in range(2)]
    path = tmp_path / "v.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with opened(path) as film:
        times = [time for time, _ in film.frames()]
    assert len(times) == 40
    assert (np.diff(times) > 0).all()
    assert times[-1] == pytest.approx(39 / 8, abs=0.3)


def test_a_truncated_film_is_as_long_as_its_header_says(tmp_path):
    path = write_film(tmp_path / "v.mkv", levels(40, step=6))
    path.write_bytes(path.read_bytes()[: int(0.8 * path.stat().st_size)])
    assert duration(path) == pytest.approx(5)
    assert "are missing; the file may be truncated" in (read_frames(path, [0.5, 4.5], (64, 96)).problem or "")


def test_a_size_that_changes_is_followed(tmp_path):
    parts = [
        write_film(tmp_path / f"{i}.h264", levels(8, size), options={"x264-params": "tff=1", "flags": flags})
        for i, (size, flags) in enumerate([((64, 96), "+ildct"), ((96, 64), "+ildct"), ((48, 64), "-ildct")])
    ]
    path = tmp_path / "v.h264"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    frames = read_frames(path, [i / 8 for i in range(24)], (64, 96)).frames
    assert [round(image.mean() / 10) for _, image in frames.values()] == [*range(8)] * 3


def test_an_absurd_size_is_a_reason(tmp_path, monkeypatch):
    path = write_film(tmp_path / "v.mp4", levels(4))
    monkeypatch.setattr("fp_lightning.media.decoding.MAX_PIXELS", 6000)
    with pytest.raises(VideoError, match=r"96 × 64 pixels are more than 6000; scale it down"):
        read_frames(path, [0.0], (64, 96))


def test_a_decoder_is_not_asked_for_an_absurd_size(tmp_path):
    images = [Image.fromarray(image) for image in levels(3)]
    images[0].save(tmp_path / "v.gif", save_all=True, append_images=images[1:], duration=500)
    data = bytearray((tmp_path / "v.gif").read_bytes())
    data[6:10] = b"\x00\x40\x00\x40"  # 16384 × 16384, which would be 1 GB a frame
    (tmp_path / "v.gif").write_bytes(data)
    with pytest.raises(VideoError, match=r"v\.gif cannot be read"):
        read_frames(tmp_path / "v.gif", [0.0], (64, 96))


@pytest.mark.parametrize("error", [ValueError("x"), MemoryError(), OverflowError("y"), IndexError("z")])
def test_whatever_decoding_raises_is_a_reason(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    path = write_film(tmp_path / "v.mp4", levels(4))
    monkeypatch.setattr("fp_lightning.media.video.as_shown", fail)
    with pytest.raises(VideoError, match=r"v\.mp4 cannot be read \((x|MemoryError|y|z)\)"):
        read_frames(path, [0.0], (64, 96))


def test_a_mistake_of_the_reader_is_not_taken_for_a_broken_file(tmp_path, monkeypatch):
    path = write_film(tmp_path / "v.mp4", levels(4))
    monkeypatch.setattr("fp_lightning.media.video.as_shown", lambda: None)
    with pytest.raises(TypeError):
        read_frames(path, [0.0], (64, 96))


def test_one_frame_is_a_film(tmp_path):
    path = write_film(tmp_path / "v.mp4", levels(1))
    assert duration(path) == pytest.approx(0.125)
    assert read_frames(path, [0.0, 0.1], (64, 96)).problem is None


@pytest.mark.parametrize(
    "name", ["Trip: Rome.mp4", "http:x.mp4", "100%d.mp4", "file:v.mp4", os.fsdecode(b"caf\xe9.mp4")]
)
def test_any_file_name_is_opened(tmp_path, monkeypatch, name):
    film = write_film(tmp_path / "v.mp4", levels(8))
    os.rename(film, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert duration(name) == pytest.approx(1)


def test_a_playlist_in_disguise_opens_no_server(tmp_path):
    path = tmp_path / "v.mp4"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(VideoError, match=r"v\.mp4 cannot be read"):
        read_frames(path, [0.0], (64, 96))
