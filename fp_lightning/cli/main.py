"""`fp-lightning`: one entry for training, data and the quickstart. Heavy imports wait for the command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fp_lightning.cli.commands import TRAINER_COMMANDS
from fp_lightning.errors import InputError
from fp_lightning.training.recipe_files import resolve_recipes


def main() -> int:
    """Runs `sys.argv`; returns the exit status. Bad input is one line on stderr and status 1."""
    commands: dict[str, tuple[str, Callable[[list[str]], object]]] = {
        **{name: (text, partial(_train_command, name)) for name, text in TRAINER_COMMANDS.items()},
        "pairs": ("build training pairs from videos", _pairs),
        "plan": ("the memory and the time that a recipe takes, before it runs", _plan),
        "convert": ("released weights, checkpoints and pipeline folders, each from the other", _convert),
        "clips": ("write procedural videos", _clips),
        "scenes": ("write training pairs of procedural scenes, with exact flow and tracks", _scenes),
        "sweep": ("run recipes × seeds, resume them, and put their metrics into one table", _sweep),
        "evaluate": ("score folders of images from any system on the same pairs, side by side", _evaluate),
        "benchmark": ("hold pairs out: a list with hashes, and the inputs for other systems", _benchmark),
        "study": ("a blind comparison by people: its page, and its result", _study),
        "demo": ("the interactive editor, a web page and a service", _demo),
        "bench": ("measure speed, memory and accuracy beside references", _bench),
        "quickstart": ("clips, pairs, fit, validate and predict in one go", _quickstart),
    }
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, commands))
        lines = [f"  {name:<{width}}  {text}" for name, (text, _) in commands.items()]
        print("usage: fp-lightning COMMAND [options]\n\n" + "\n".join(lines))
        print("\nfp-lightning COMMAND --help lists the options.")
        return 0 if arguments else 1
    try:
        if arguments[0] not in commands:
            raise InputError(f"unknown command {arguments[0]}; choose {', '.join(commands)}")
        commands[arguments[0]][1](arguments[1:])
    except InputError as error:
        print(f"fp-lightning: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fp-lightning: interrupted", file=sys.stderr)
        return 130
    return 0


def _train_command(command: str, arguments: list[str]) -> None:
    from fp_lightning.cli.trainer import run

    sys.argv[1:] = [command, *resolve_recipes(arguments)]  # DDP starts its other ranks from sys.argv
    run(command)


def _parser(command: str, text: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"fp-lightning {command}", description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )


def _pairs(arguments: list[str]) -> None:
    from dataclasses import fields

    from fp_lightning.pairs.build import build_pairs
    from fp_lightning.pairs.cotracker import COTRACKER_LICENCE
    from fp_lightning.pairs.engines import ENGINES
    from fp_lightning.pairs.filters import PairFilter
    from fp_lightning.pairs.flow.registry import FLOWS
    from fp_lightning.pairs.settings import PairSettings
    from fp_lightning.pairs.tracks import TRACKERS

    default = PairSettings()
    parser = _parser("pairs", "Build training pairs from videos; the same pairs serve every signal.")
    parser.add_argument("videos", nargs="+", help="video files, folders of frames, or folders of either")
    parser.add_argument("--out", required=True, help="folder for the pairs")
    parser.add_argument("--size", nargs=2, type=int, metavar=("H", "W"), default=default.size, help="stored size, px")
    parser.add_argument("--min-gap", type=float, default=default.min_gap, help="seconds between the two frames, least")
    parser.add_argument("--max-gap", type=float, default=default.max_gap, help="seconds between the two frames, most")
    parser.add_argument("--pairs-per-video", type=int, default=default.pairs_per_video, help="kept at most")
    parser.add_argument("--candidates", type=int, default=default.candidates, help="tried at most, per video")
    parser.add_argument("--spacing", type=float, default=default.spacing, help="seconds between candidates, least")
    parser.add_argument(
        "--step", type=float, default=default.step, help="seconds from frame to frame of a chain; 0: none"
    )
    parser.add_argument("--flow", choices=sorted(FLOWS), default=default.flow, help="estimator of optical flow")
    parser.add_argument("--flow-weights", metavar="FILE", help="its weights, in place of its own download")
    parser.add_argument("--tracker", choices=sorted(TRACKERS), default=default.tracker, help="tracker of points")
    parser.add_argument("--tracker-weights", metavar="DIR", help="its code and weights, in place of its own download")
    parser.add_argument("--accept-license", action="store_true", help="of a tracker that is not free for every use")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--engine", choices=sorted(ENGINES), default="local", help="ray: one machine or a cluster")
    parser.add_argument("--workers", type=int, help="processes; by default one per core, or per GPU if it has work")
    parser.add_argument("--resume", action="store_true", help="go on with a folder that was begun")
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


def _plan(arguments: list[str]) -> None:
    from fp_lightning.cli.trainer import configuration
    from fp_lightning.training.plan import GPUS, report, setting_of

    parser = _parser("plan", "Simulate a step of `fit` with these recipes and options: memory of each GPU, and time.")
    parser.usage = "fp-lightning plan --config RECIPE ... [options of fit] [--gpu NAME] [--utilisation SHARE]"
    parser.add_argument("--gpu", default="a100-80", metavar="NAME", help=", ".join(GPUS))
    parser.add_argument("--utilisation", type=float, default=0.4, help="of the GPU's products, up to 1")
    own, words = parser.parse_known_args(arguments)
    setting, steps = setting_of(configuration(resolve_recipes(words)))
    print("\n".join(report(setting, steps, own.gpu, own.utilisation)))


def _convert(arguments: list[str]) -> None:
    from fp_lightning.model.svd.load import SVD

    def common(kind: str, text: str, given: str, out: str) -> argparse.ArgumentParser:
        parser = kinds.add_parser(
            kind, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        parser.add_argument("given", metavar="IN", help=given)
        parser.add_argument("out", metavar="OUT", type=Path, help=f"{out}; must not exist yet")
        parser.add_argument(
            "--dtype", choices=("float32", "float16", "bfloat16"), help="of all weights; each file's own if not given"
        )
        return parser

    parser = _parser("convert", "Released weights, Lightning checkpoints and pipeline folders, each from the other.")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="released|checkpoint|pipeline|lora")
    released = common(
        "released", "the released files to a pipeline folder", "folder of the two files, or hub id", "folder"
    )
    checkpoint = common("checkpoint", "a checkpoint of fit to a pipeline folder", "checkpoint", "folder")
    common("pipeline", "a pipeline folder to the released files", "pipeline folder, or hub id", "folder of two files")
    lora = common("lora", "a checkpoint's LoRA adapters to a file that diffusers loads", "checkpoint", "folder")
    for each in (checkpoint, lora):
        each.add_argument(
            "--weights", choices=("auto", "ema", "raw"), default="auto", help="averaged or last; auto: as predict does"
        )
    model = "SVD in diffusers' format, folder or hub id: its VAE, image encoder, scheduler and configuration are used"
    for each, default in ((released, SVD), (checkpoint, None)):
        each.add_argument("--model", default=default, help=model + ("" if default else "; the checkpoint's own"))
        each.add_argument("--variant", help="of SVD's weight files, for example fp16")
        each.add_argument(
            "--size", nargs=2, type=int, metavar=("H", "W"), default=(576, 1024) if default else None,
            help="at which the network works, px" + ("" if default else "; the checkpoint's own"),
        )  # fmt: skip
    options = vars(parser.parse_args(arguments))
    import torch

    from fp_lightning.weights import convert
    from fp_lightning.weights.tensorfiles import WeightsError

    kind, given, out = (options.pop(name) for name in ("kind", "given", "out"))
    dtype = options.pop("dtype")
    functions: dict[str, Callable[..., convert.Converted]] = {
        "released": convert.convert_released,
        "checkpoint": convert.convert_checkpoint,
        "pipeline": convert.convert_pipeline,
        "lora": convert.convert_lora,
    }
    try:
        print(functions[kind](given, out, **options, dtype=getattr(torch, dtype) if dtype else None))
    except WeightsError as error:
        print("\n".join(error.details), file=sys.stderr)
        raise


def _clips(arguments: list[str]) -> None:
    from fp_lightning.scenes.scene import write_clips

    parser = _parser("clips", "Write procedural videos: textured objects moving over textured ground.")
    parser.add_argument("out", help="folder for the videos")
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--size", nargs=2, type=int, metavar=("H", "W"), default=(256, 256), help="px, even")
    parser.add_argument("--seed", type=int, default=0)
    _add_content(parser)
    options = vars(parser.parse_args(arguments))
    own = {name: options.pop(name) for name in ("out", "count", "size", "seed")}
    written = write_clips(**own | {"size": tuple(own["size"])}, **_content(options))
    print(f"{len(written)} videos in {own['out']}")


def _add_content(parser: argparse.ArgumentParser) -> None:
    """Options for what a scene shows, see `Scene`."""
    parser.add_argument("--objects", nargs=2, type=int, metavar=("LEAST", "MOST"), default=(1, 1))
    parser.add_argument(
        "--motion", nargs=2, type=float, metavar=("LEAST", "MOST"), default=(0.125, 0.375), help="in image widths"
    )
    parser.add_argument(
        "--radius", nargs=2, type=float, metavar=("LEAST", "MOST"), default=(0.12, 0.24), help="in image widths"
    )
    parser.add_argument("--turn", type=float, default=0.3, help="radians, at most")
    parser.add_argument("--growth", type=float, default=0.1, help="of log scale, at most")
    parser.add_argument("--detail", type=float, default=1.0, help="of textures, up to 1")
    parser.add_argument("--exposure", type=float, default=0.0, help="0 for well-lit scenes, up to 1")
    parser.add_argument(
        "--variety", type=float, default=0.0, help="0 for plain objects, up to 1: limbs, bending, shadows"
    )


def _content(options: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}


def _scenes(arguments: list[str]) -> None:
    from fp_lightning.scenes.procedural import write_scene_pairs

    parser = _parser("scenes", "Write training pairs of procedural scenes, with exact flow and tracks.")
    parser.add_argument("out", help="folder for the pairs")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--size", nargs=2, type=int, metavar=("H", "W"), default=(64, 64), help="px")
    parser.add_argument("--stride", type=int, default=4, help="pixels between tracked token centres")
    parser.add_argument("--seed", type=int, default=0)
    _add_content(parser)
    parser.add_argument("--workers", type=int, help="processes; by default one a core")
    options = vars(parser.parse_args(arguments))
    own = {name: options.pop(name) for name in ("out", "count", "size", "stride", "seed", "workers")}
    manifest = write_scene_pairs(**own | {"size": tuple(own["size"])}, scene=_content(options))
    print(f"{manifest['pairs']} pairs in {own['out']}")


def _sweep(arguments: list[str]) -> None:
    from fp_lightning.training.sweep import BASE, RESULTS, markdown, plan, sweep

    parser = _parser("sweep", "Run recipes × seeds: fit and test of each, resumed, with one table of their metrics.")
    parser.add_argument("arms", nargs="+", help="recipes that state one difference each, and `base` for none")
    parser.add_argument("--base", nargs="+", metavar="RECIPE", default=["tiny", "ablations/base"], help="of all arms")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", required=True, help="folder for the runs and results.csv")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    parser.add_argument("--metrics", nargs="+", default=["psnr_moving", "psnr", "ssim"], help="shown in the table")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="options of all runs, without the --"
    )
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        raise InputError(f"--jobs must be 1 or more, got {options.jobs}")
    if wrong := [word for word in options.set if "=" not in word]:
        raise InputError(f"--set takes NAME=VALUE, got {wrong[0]}; for example trainer.max_steps=400")
    words = [f"--{word}" for word in options.set]
    runs = plan(options.arms, options.seeds, options.out, options.base, words)
    rows = sweep(runs, options.jobs, options.engine)
    print(markdown(rows, options.metrics))
    print(f"All metrics: {Path(options.out) / RESULTS}" + ("" if BASE in options.arms else "; no base to compare with"))


def _examples(parser: argparse.ArgumentParser) -> None:
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--pairs", metavar="DIR", help="folder of pairs, as `fp-lightning pairs` wrote it")
    kind.add_argument("--drags", metavar="DIR", help="DragBench, VFD-Bench or ReD Bench, as published")
    parser.add_argument("--list", type=Path, metavar="FILE", help="of the pairs: only those held out in it")


def _open_examples(options: dict[str, Any]) -> Any:
    from fp_lightning.evaluation.examples import DragExamples, PairExamples

    pairs, drags, listed = (options.pop(name) for name in ("pairs", "drags", "list"))
    if drags and listed:
        raise InputError("--list chooses among --pairs, it cannot go with --drags; leave it out")
    return DragExamples(drags) if drags else PairExamples(pairs, listed)


def _evaluate(arguments: list[str]) -> None:
    from fp_lightning.evaluation.compare import evaluate, markdown
    from fp_lightning.evaluation.perceptual import CLIP_MODEL
    from fp_lightning.pairs.flow.registry import FLOWS

    parser = _parser("evaluate", "Score folders of images, NAME.png for each example, and compare them.")
    parser.add_argument("predictions", nargs="+", type=Path, help="folders; the others are compared with the first")
    _examples(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for metrics, comparison and report")
    parser.add_argument("--require", metavar="NAMES", help="lpips, clip_fid or both with a comma: fail without them")
    parser.add_argument("--download", action="store_true", help="fetch missing weights of LPIPS and CLIP")
    parser.add_argument("--clip-model", default=CLIP_MODEL, help="CLIP ViT-B/32, folder or hub id")
    parser.add_argument("--flow", choices=sorted(FLOWS), default="dis", help="estimator for drags and lines")
    parser.add_argument("--tracker", choices=("flow", "dift"), default="flow", help="how dragged points are found")
    parser.add_argument("--dift-model", default="stabilityai/stable-diffusion-2-1", help="for dift, folder or hub id")
    parser.add_argument("--resize", action="store_true", help="bring images of another size to their example's")
    parser.add_argument("--allow-missing", action="store_true", help="score the examples that all folders have")
    parser.add_argument("--samples", type=int, default=200, help="shown in the report, at most")
    options = vars(parser.parse_args(arguments))
    examples, out = _open_examples(options), options.pop("out")
    names = ("download", "clip_model", "flow", "tracker", "dift_model")
    metrics = {name: options.pop(name) for name in names}
    metrics["require"] = tuple(filter(None, (options.pop("require") or "").split(",")))
    folders, samples = options.pop("predictions"), options.pop("samples")
    comparison = evaluate(folders, examples, out, metrics, **options, max_samples=samples)
    print(markdown(comparison))
    print(f"Report: {out / 'report.html'}")


def _benchmark(arguments: list[str]) -> None:
    from fp_lightning.evaluation.examples import PairExamples, write_examples
    from fp_lightning.pairs.heldout import choose_pairs, write_list

    parser = _parser("benchmark", "Hold pairs out of training, and write what any system is given to edit.")
    _examples(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for heldout.json and inputs/")
    parser.add_argument("--count", type=int, default=200, help="pairs held out, of whole videos")
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args(arguments))
    given = options["list"]
    out, count, seed = (options.pop(name) for name in ("out", "count", "seed"))
    if count < 1:
        raise InputError(f"--count must be 1 or more, got {count}")
    examples = _open_examples(options)
    if isinstance(examples, PairExamples) and given is None:
        chosen = choose_pairs(examples.store, count, seed)
        write_list(examples.store, chosen, out / "heldout.json", seed)
        print(f"{len(chosen)} pairs of {len({examples.store.videos[i] for i in chosen})} videos in {out}/heldout.json")
        print(f"Train without them: --data.holdout {out}/heldout.json")
        examples = PairExamples(examples.store.root, out / "heldout.json")
    write_examples(examples, out / "inputs", seed)
    print(f"Inputs of {len(examples.names)} examples in {out}/inputs")


def _study(arguments: list[str]) -> None:
    import json

    from fp_lightning.evaluation.study import QUESTIONS, build_study, score_study

    parser = _parser("study", "Which of two systems do people prefer? A page for raters, and what they said.")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="build|score")
    shown = argparse.ArgumentDefaultsHelpFormatter
    build = kinds.add_parser("build", help="study.html for raters, key.json for you", formatter_class=shown)
    build.add_argument("first", type=Path, help="folder of predictions")
    build.add_argument("second", type=Path, help="folder of predictions")
    _examples(build)
    build.add_argument("--out", type=Path, required=True, help="folder for the page and its key")
    build.add_argument("--count", type=int, default=100, help="examples, drawn at random")
    build.add_argument("--seed", type=int, default=0)
    build.add_argument("--resize", action="store_true", help="bring images of another size to their example's")
    score = kinds.add_parser("score", help="preference rates with 95 %% intervals", formatter_class=shown)
    score.add_argument("key", type=Path, help="key.json of the study")
    score.add_argument("answers", type=Path, nargs="+", help="files that raters saved")
    score.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    options = vars(parser.parse_args(arguments))
    if options.pop("kind") == "build":
        if options["count"] < 1:
            raise InputError(f"--count must be 1 or more, got {options['count']}")
        examples = _open_examples(options)
        page = build_study(options.pop("first"), options.pop("second"), examples, **options)
        print(f"Give raters {page}, and keep {page.with_name('key.json')} from them.")
        return
    result = score_study(options["key"], options["answers"])
    if options["json"]:
        from fp_lightning.files import write_atomic

        write_atomic(options["json"], (json.dumps(result, indent=2) + "\n").encode())
    first, second = result["systems"]
    print(f"{first} against {second}: {result['answers']} answers of {result['raters']} raters")
    for name, found in result["questions"].items():
        low, high = found["interval"]
        counts = f"{found['wins']} for it, {found['ties']} the same, {found['losses']} against"
        print(f"{QUESTIONS[name]} {first} {found['preferred']:.1%} ({low:.1%} to {high:.1%}; {counts})")


def _bench(arguments: list[str]) -> None:
    from fp_lightning.bench.run import BENCHMARKS, bench

    parser = _parser("bench", "Measure things beside a reference in the same run; quote the ratio, not the seconds.")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHMARKS)}; none runs all")
    parser.add_argument("--rounds", type=int, default=3, help="times that both sides run, in turn")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    options = parser.parse_args(arguments)
    bench(options.names, options.rounds, options.json)


def _demo(arguments: list[str]) -> None:
    from fp_lightning.demo.serve import serve

    parser = _parser("demo", "The interactive editor: sketch, drag, cut and paste on a page. Ctrl+C ends it.")
    parser.add_argument("--model", default="tiny-editor", help="pipeline folder, hub id, or tiny-editor")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all, with a password")
    parser.add_argument("--port", type=int, default=7860, help="0 for any free one")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), help="of the weights; float16 on a GPU, else float32"
    )
    parser.add_argument("--password", help="asked of visitors, with the user name editor; a new one for other hosts")
    parser.add_argument("--no-password", action="store_true", help="ask nobody, also on other hosts")
    parser.add_argument("--queue", type=int, default=32, help="edits in the line at most")
    parser.add_argument("--per-user", type=int, default=2, help="of them from one browser or program at most")
    parser.add_argument("--max-megabytes", type=float, default=25, help="of an upload")
    parser.add_argument("--max-megapixels", type=float, default=40, help="of a photo")
    parser.add_argument("--keep-hours", type=float, default=24, help="work that nobody looks at is kept so long")
    parser.add_argument("--segmenter", metavar="MODEL", help="of the SAM family, folder or hub id: cut out by a click")
    options = vars(parser.parse_args(arguments))
    serve(open_to_all=options.pop("no_password"), **options)


def _quickstart(arguments: list[str]) -> None:
    from fp_lightning.cli.quickstart import quickstart

    parser = _parser("quickstart", "Clips, pairs, fit, validate and predict with the tiny build, about ten minutes.")
    parser.add_argument("--videos", nargs="*", default=[], help="your own videos, in place of procedural clips")
    parser.add_argument("--out", default="runs/quickstart")
    parser.add_argument("--steps", type=int, default=700, help="training steps of 8 pairs")
    parser.add_argument("--clips", type=int, default=128, help="procedural clips")
    parser.add_argument("--weights", choices=("pretrained", "random"), default="pretrained", help="to start from")
    options = parser.parse_args(arguments)
    quickstart(options.videos, Path(options.out), options.steps, options.clips, options.weights)
