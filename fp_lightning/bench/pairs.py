"""Benchmark the pair builder: time per stage, scaling over workers, memory, and accuracy of its motion."""

from __future__ import annotations

import cProfile
import os
import pstats
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from fp_lightning.bench.measure import Result, compare
from fp_lightning.evaluation.scores import psnr
from fp_lightning.pairs.build import process_video
from fp_lightning.pairs.candidates import build_video
from fp_lightning.pairs.engines import Task, cores, one_thread, run_local
from fp_lightning.pairs.flow.dis import dis_flow
from fp_lightning.pairs.motion import chained_flow, link
from fp_lightning.pairs.settings import PairSettings
from fp_lightning.pairs.shards import write_shard
from fp_lightning.pairs.tracks import tracks_from_flow
from fp_lightning.scenes.clips import write_clip
from fp_lightning.scenes.content import SceneContent
from fp_lightning.scenes.scene import Scene
from fp_lightning.signals.coarse import coarse_edit
from fp_lightning.signals.sketch import sketch
from fp_lightning.types import VideoPair

MOTION = SceneContent(objects=(1, 3), motion=(0.08, 0.3), turn=0.4, growth=0.15)
STAGES = {  # stage: functions of this package whose time counts for it
    "decode": ["stream_frames"],
    "cut": ["continuity"],
    "flow": ["link"],
    "motion": ["chained_flow"],
    "tracks": ["tracks_from_flow"],
    "filter": ["reason", "camera_moves", "nothing_changes"],
    "write": ["write_shard"],
}


def pairs(rounds: int) -> list[Result]:
    """Time several workers against one, profile one worker by stage, and measure memory at 3840 × 2160."""
    settings = PairSettings()
    one_thread()  # as in a worker
    with tempfile.TemporaryDirectory() as folder:
        root, workers = Path(folder), max(2, cores())
        clips = [write_clip(Enlarged(seed, (360, 640), 2, MOTION), root / f"{seed}.mp4") for seed in range(4 * workers)]
        tasks = [Task(str(clip), root / "out", settings) for clip in clips]

        def build(processes: int) -> Callable[[], object]:
            return lambda: list(run_local(process_video, tasks, processes))

        spread = compare("pairs/workers", build(workers), build(1), rounds, workers=workers, videos=len(clips))
        stages = _stages(clips[:4], root / "staged", settings)
        large = write_clip(Enlarged(0, (2160, 3840), 6, MOTION), root / "large.mp4", seconds=3)
        peak = Result("pairs/memory", settings={"clip": "3840x2160", "size": list(settings.size)})
        peak.peak_bytes_ours = _peak(large, settings)
    return [spread, stages, peak]


class Enlarged(Scene):
    """A scene that is rendered at 1 / `factor` of its size and enlarged, because rendering is not to be measured."""

    def __init__(self, seed: int, size: tuple[int, int], factor: int, content: SceneContent | None = None) -> None:
        super().__init__(seed, (size[0] // factor, size[1] // factor), content)
        self.drawn, self.size = self.size, size

    def frame(self, time: float, supersample: int = 1) -> np.ndarray:
        shown, self.size = self.size, self.drawn
        image = super().frame(time, supersample)
        self.size = shown
        return cv2.resize(image, shown[::-1], interpolation=cv2.INTER_CUBIC)


def _stages(clips: list[Path], out: Path, settings: PairSettings) -> Result:
    profile = cProfile.Profile()
    with profile:
        for clip in clips:
            write_shard(out, str(clip), build_video(clip, settings).pairs)
    seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
    stage_of = {function: stage for stage, functions in STAGES.items() for function in functions}
    for (file, _, function), (_, _, _, inside, callers) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        if function in stage_of and "fp_lightning" in file:  # time inside a caller of another stage counts there
            seconds[stage_of[function]] += inside - sum(
                times[3] for (_, _, caller), times in callers.items() if caller in stage_of
            )
    total = pstats.Stats(profile).total_tt  # type: ignore[attr-defined]
    shares = {stage: round(value / total, 3) for stage, value in seconds.items()}
    shares["other"] = round(1 - sum(shares.values()), 3)
    return Result(
        "pairs/stages", ours=total / len(clips), settings={"unit": "s per video, one thread", "shares": shares}
    )


def _peak(clip: Path, settings: PairSettings) -> int:
    """Return the peak resident memory in bytes of a new process that imports the package and builds one video."""
    code = (
        "import resource, sys; from fp_lightning.pairs.candidates import PairSettings, build_video;"
        f"build_video(sys.argv[1], PairSettings(size={settings.size}));"
        "print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(clip)], capture_output=True, text=True, check=True, env=environment
    )
    return int(done.stdout)


def correspondence(rounds: int, size: tuple[int, int] = (320, 512), scenes: int = 12, links: int = 8) -> list[Result]:
    """Compare DIS flow chained through all frames with direct flow between the ends, on scenes with exact flow."""
    ways = {"chained": links, "jump": 1}
    figures: dict[str, dict[str, list[Tensor]]] = {way: {} for way in ways}
    films = []
    for seed in range(scenes):
        scene = Scene(seed, size, MOTION)
        film = [scene.frame(t, 2) for t in np.linspace(0, 1, links + 1)]
        films.append(film)
        for way, count in ways.items():
            used = film[:: links // count]
            found = chained_flow(used, link(used, dis_flow), dis_flow)
            for name, values in _figures(scene, *found).items():
                figures[way].setdefault(name, []).append(values)
    timed = compare(
        "correspondence",
        lambda: [chained_flow(film, link(film, dis_flow), dis_flow) for film in films[:2]],
        lambda: [chained_flow(film[::links], link(film[::links], dis_flow), dis_flow) for film in films[:2]],
        rounds,
    )
    summary = {way: _summary(values) for way, values in figures.items()}
    timed.error = summary["chained"]["track_error_moving_median"]
    timed.settings |= {"unit": "px at 512 px width", "scenes": scenes, "links": links, **summary}
    return [timed]


def _figures(scene: Scene, to_source: Tensor, to_target: Tensor) -> dict[str, Tensor]:
    """Return errors of the flow of one scene, and agreement of its signals; lengths are in px at 512 px width."""
    truth, scale = scene.pair(), 512 / scene.size[1]
    tracks, visible = tracks_from_flow(to_source, to_target)
    item = torch.from_numpy(scene.layer(scene._grid(1), 1.0) >= 0)
    on_item = torch.from_numpy(scene.layer(scene._grid(8), 1.0) >= 0)
    error = (tracks - truth.tracks).norm(dim=0) * scale
    pair = replace(truth, flow_to_source=to_source, flow_to_target=to_target, tracks=tracks, visible=visible)
    seen = torch.from_numpy(scene.correspond(scene._grid(1), 1.0, 0.0)[1])[None, None]
    drawn, ideal = (_agreement(sketch(p)[0].numpy() > 0, outline(scene, 1.0), 2 / scale) for p in (pair, truth))
    return {
        "epe": (to_source - truth.flow_to_source).norm(dim=0)[item] * scale,
        "all": error[truth.visible],
        "moving": error[truth.visible & on_item],
        "hit": torch.stack([(visible & truth.visible).sum(), (visible ^ truth.visible).sum()])[None],
        "sketch": torch.tensor(drawn + ideal)[None],
        "coarse": torch.stack([_coarse_psnr(pair, seen), _coarse_psnr(truth, seen)])[None],
    }


def _summary(figures: dict[str, list[Tensor]]) -> dict[str, float]:
    every = {name: torch.cat(values).float() for name, values in figures.items()}
    both, one = every["hit"].sum(0)
    numbers = {
        "flow_error_moving_median": every["epe"].median(),
        "flow_error_moving_mean": every["epe"].mean(),
        "track_error_median": every["all"].median(),
        "track_error_p90": every["all"].quantile(0.9),
        "track_error_moving_median": every["moving"].median(),
        "track_error_moving_p90": every["moving"].quantile(0.9),
        "visibility_f1": 2 * both / (2 * both + one),
        "sketch_precision": every["sketch"][:, 0].mean(),
        "sketch_recall": every["sketch"][:, 1].mean(),
        "sketch_precision_exact_flow": every["sketch"][:, 2].mean(),
        "sketch_recall_exact_flow": every["sketch"][:, 3].mean(),
        "coarse_psnr_visible": every["coarse"][:, 0].mean(),
        "coarse_psnr_visible_exact_flow": every["coarse"][:, 1].mean(),
    }
    return {name: round(float(value), 3) for name, value in numbers.items()}


def _coarse_psnr(pair: VideoPair, seen: Tensor) -> Tensor:
    return psnr(coarse_edit(pair)[None], pair.target[None] / 255, seen)[0]


def outline(scene: Scene, time: float) -> np.ndarray:
    """Return a mask [h, w] of pixels whose right or lower neighbour shows a different layer."""
    layer = scene.layer(scene._grid(1), time)
    edge = np.zeros(layer.shape, bool)
    edge[:-1] |= layer[:-1] != layer[1:]
    edge[:, :-1] |= layer[:, :-1] != layer[:, 1:]
    return edge


def _agreement(drawn: np.ndarray, true: np.ndarray, distance: float) -> tuple[float, float]:
    """Return precision and recall of lines, given as masks [h, w], within `distance` pixels."""

    def near(points: np.ndarray, others: np.ndarray) -> float:
        if not points.any():
            return 1.0
        far = cv2.distanceTransform((~others).astype(np.uint8), cv2.DIST_L2, 5)
        return float((far[points] <= distance).mean())

    return near(drawn, true), near(true, drawn) if drawn.any() else 0.0
