"""`fp-lightning pairs`, `clips` and `scenes`: commands that make training data."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from fp_lightning.cli.parsing import make_parser
from fp_lightning.errors import InputError
from fp_lightning.scenes.content import SceneContent


def pairs(arguments: list[str]) -> None:
    """Build pairs from videos."""
    from dataclasses import fields

    from fp_lightning.pairs.build import build_pairs
    from fp_lightning.pairs.cotracker import COTRACKER_LICENCE
    from fp_lightning.pairs.engines import ENGINES
    from fp_lightning.pairs.filters import PairFilter
    from fp_lightning.pairs.flow.registry import FLOWS
    from fp_lightning.pairs.settings import PairSettings
    from fp_lightning.pairs.tracks import TRACKERS

    default = PairSettings()
    parser = make_parser("pairs", "Build training pairs from videos; the same pairs serve every signal.")
    parser.add_argument("videos", nargs="+", help="video files, folders of frames, or folders of either")
    parser.add_argument("--out", required=True, help="folder for the pairs")
    parser.add_argument("--size", nargs=2, type=int, metavar=("H", "W"), default=default.size, help="stored size, px")
    parser.add_argument("--min-gap", type=float, default=default.min_gap, help="least seconds between the two frames")
    parser.add_argument("--max-gap", type=float, default=default.max_gap, help="most seconds between the two frames")
    parser.add_argument(
        "--pairs-per-video", type=int, default=default.pairs_per_video, help="most pairs kept per video"
    )
    parser.add_argument("--candidates", type=int, default=default.candidates, help="most candidates tried per video")
    parser.add_argument("--spacing", type=float, default=default.spacing, help="least seconds between candidates")
    parser.add_argument("--step", type=float, default=default.step, help="seconds between chained frames; 0: no chain")
    parser.add_argument("--flow", choices=sorted(FLOWS), default=default.flow, help="optical flow estimator")
    parser.add_argument("--flow-weights", metavar="FILE", help="weight file of the estimator (default: download)")
    parser.add_argument("--tracker", choices=sorted(TRACKERS), default=default.tracker, help="tracker of points")
    parser.add_argument("--tracker-weights", metavar="DIR", help="code and weights of the tracker (default: download)")
    parser.add_argument(
        "--accept-license", action="store_true", help="accept the licence of a tracker that restricts use"
    )
    parser.add_argument("--seed", type=int, default=default.seed, help="seed of the choice of frames")
    parser.add_argument(
        "--engine", choices=sorted(ENGINES), default="local", help="local processes, or Ray on one machine or a cluster"
    )
    parser.add_argument(
        "--workers", type=int, help="number of processes (default: one per core, or per GPU for learned estimators)"
    )
    parser.add_argument("--resume", action="store_true", help="continue a folder that was started, or add videos to it")
    filters = parser.add_argument_group("filters", "lengths in pixels at 512 px width, shares from 0 to 1")
    for item in fields(PairFilter):
        value = getattr(default.filter, item.name)
        filters.add_argument(
            f"--{item.name.replace('_', '-')}", type=float, default=value, help=PairFilter.HELP[item.name]
        )
    options = vars(parser.parse_args(arguments))
    videos, out = options.pop("videos"), options.pop("out")
    run = {name: options.pop(name) for name in ("workers", "resume", "engine")}
    if run["workers"] is not None and run["workers"] < 1:
        raise InputError(f"--workers must be 1 or more, got {run['workers']}")
    if options["tracker"] == "cotracker3" and options["accept_license"]:
        print(COTRACKER_LICENCE, file=sys.stderr)
    thresholds = PairFilter(**{item.name: options.pop(item.name) for item in fields(PairFilter)})
    settings = PairSettings(**{**options, "size": tuple(options["size"])}, filter=thresholds)
    manifest = build_pairs(videos, out, settings, **run)
    rejected = ", ".join(f"{count} {reason}" for reason, count in manifest["rejected"].items()) or "none"
    print(f"{manifest['pairs']} pairs of {manifest['videos']} videos in {out}; rejected: {rejected}")
    print(f"Look at {Path(out) / 'preview.html'} before you train.")


def clips(arguments: list[str]) -> None:
    """Write procedural videos."""
    from fp_lightning.scenes.clips import write_clips

    parser = make_parser("clips", "Write procedural videos: textured objects moving over textured ground.")
    parser.add_argument("out", help="folder for the videos")
    parser.add_argument("--count", type=int, default=24, help="number of videos")
    parser.add_argument("--size", nargs=2, type=int, metavar=("H", "W"), default=(256, 256), help="px, even")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first video; the others follow it")
    _add_content(parser)
    options = vars(parser.parse_args(arguments))
    own = {name: options.pop(name) for name in ("out", "count", "size", "seed")}
    written = write_clips(**own | {"size": tuple(own["size"])}, content=_content(options))
    print(f"{len(written)} videos in {own['out']}")


def scenes(arguments: list[str]) -> None:
    """Write pairs of procedural scenes."""
    from fp_lightning.scenes.procedural import write_scene_pairs

    parser = make_parser("scenes", "Write training pairs of procedural scenes, with exact flow and tracks.")
    parser.add_argument("out", help="folder for the pairs")
    parser.add_argument("--count", type=int, default=1000, help="number of pairs")
    parser.add_argument("--size", nargs=2, type=int, metavar=("H", "W"), default=(64, 64), help="px")
    parser.add_argument("--stride", type=int, default=4, help="pixels between tracked token centres")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first scene; the others follow it")
    _add_content(parser)
    parser.add_argument("--workers", type=int, help="number of processes (default: one per core)")
    options = vars(parser.parse_args(arguments))
    own = {name: options.pop(name) for name in ("out", "count", "size", "stride", "seed", "workers")}
    manifest = write_scene_pairs(**own | {"size": tuple(own["size"])}, content=_content(options))
    print(f"{manifest['pairs']} pairs in {own['out']}")


def _add_content(parser: argparse.ArgumentParser) -> None:
    """Add an option for each field of `SceneContent`, with its default."""
    default = SceneContent()
    for name, kind, text in (
        ("objects", int, "range of their number"),
        ("motion", float, "range in image widths"),
        ("radius", float, "range in image widths"),
    ):
        value = getattr(default, name)
        parser.add_argument(f"--{name}", nargs=2, type=kind, metavar=("LEAST", "MOST"), default=value, help=text)
    for name, text in (
        ("turn", "most rotation, radians"),
        ("growth", "most change of log scale"),
        ("detail", "texture detail, up to 1"),
        ("exposure", "variation of exposure, 0 to 1"),
        ("variety", "variety of objects, 0 to 1: limbs, bending, shadows"),
        ("clarity", "probability that an object differs clearly from the ground"),
    ):
        parser.add_argument(f"--{name}", type=float, default=getattr(default, name), help=text)


def _content(options: dict[str, Any]) -> SceneContent:
    """Return the content that the options describe."""
    fields: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in options.items()}
    return SceneContent(**fields)
