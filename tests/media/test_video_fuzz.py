"""Damaged videos give frames or a reason, never another exception, and use bounded time and memory.

`FP_LIGHTNING_FUZZ=200 pytest tests/media/test_video_fuzz.py -s` tries 200 and prints the outcomes.
"""

from collections import Counter

import numpy as np
import pytest
from damage import COUNT, damaged
from films import levels, write_film
from PIL import Image

from fp_lightning.errors import InputError
from fp_lightning.media.decoding import Film, opened
from fp_lightning.media.video import duration, stream_frames

SIZE = (32, 48)
INTERLACED = {"x264-params": "tff=1", "flags": "+ildct+ilme"}
LIMIT = 1000  # decoded frames of a video of 12; how long decoding takes depends on nothing else


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Films of 12 frames in different containers and codecs."""
    root = tmp_path_factory.mktemp("originals")
    images = [(image + np.arange(48, dtype=np.uint8)[:, None]) for image in levels(12, SIZE)]
    paths = [
        write_film(root / "plain.mp4", images),
        write_film(root / "fields.mp4", images, options=INTERLACED),
        write_film(root / "plain.mkv", images),
        write_film(root / "plain.ts", images),
        write_film(root / "frames.avi", images, options={"bf": "3"}),
        write_film(root / "raw.h264", images),
        write_film(root / "lossless.mkv", images, codec="ffv1", pix_fmt="bgr0"),
        write_film(root / "deep.mov", images, pix_fmt="yuv420p10le", color_trc=16, color_primaries=9, colorspace=9),
        write_film(root / "photos.avi", images, codec="mjpeg", pix_fmt="yuvj420p"),
        root / "pictures.gif",
    ]
    frames = [Image.fromarray(image) for image in images]
    frames[0].save(paths[-1], save_all=True, append_images=frames[1:], duration=100)
    return [(path.suffix, path.read_bytes()) for path in paths]


def outcome(path) -> str:
    try:
        length = duration(path)
        times = [length * share for share in (0.0, 0.3, 0.9, 1.0)]
        found = list(stream_frames(path, times, SIZE))
    except InputError as error:
        reason = str(error)
        return "reason" if path.name in reason and "\n" not in reason else f"not one line: {reason}"
    assert all(image.shape == (*SIZE, 3) and image.dtype == np.uint8 for _, _, image in found)
    assert [requested for requested, _, _ in found] == sorted(set(times))[: len(found)]
    return "all frames" if len(found) == len(set(times)) else "some frames" if found else "no frames"


def test_damaged_videos_give_frames_or_a_reason(originals, tmp_path, monkeypatch):
    decoded = Film._decoded
    count = 0

    def counted(self):
        nonlocal count
        for frame in decoded(self):
            count += 1
            assert count < LIMIT, "a film of 12 frames does not end"
            yield frame

    monkeypatch.setattr(Film, "_decoded", counted)
    outcomes: Counter[str] = Counter()
    for seed in range(COUNT):
        suffix, data = originals[seed % len(originals)]
        path = tmp_path / f"v{suffix}"
        path.write_bytes(damaged(data, np.random.default_rng(seed)))
        count = 0
        try:
            outcomes[outcome(path)] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed} ({suffix}): {type(error).__name__}: {error}") from error
    print(dict(outcomes))
    assert outcomes.keys() <= {"reason", "all frames", "some frames", "no frames"}
    assert outcomes["all frames"] > 0
    assert outcomes["reason"] > 0


def test_undamaged_originals_give_all_frames(originals, tmp_path):
    for suffix, data in originals:
        path = tmp_path / f"v{suffix}"
        path.write_bytes(data)
        assert outcome(path) == "all frames"
        with opened(path) as film:
            assert len(list(film.frames())) == 12
