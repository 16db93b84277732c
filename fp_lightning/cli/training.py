"""`fp-lightning plan`, `sweep`, `bench` and `quickstart`: commands around training runs."""

from __future__ import annotations

import json
from pathlib import Path

from fp_lightning.cli.parsing import make_parser
from fp_lightning.errors import InputError
from fp_lightning.files import write_text
from fp_lightning.training.recipe_files import resolve_recipes


def plan(arguments: list[str]) -> None:
    """Print what a recipe will take."""
    from fp_lightning.cli.trainer import configuration
    from fp_lightning.training.gpus import GPUS
    from fp_lightning.training.plan import make_plan, report, setting_of

    parser = make_parser("plan", "Predict memory per GPU and time of `fit` with these recipes and options.")
    parser.usage = (
        "fp-lightning plan --config RECIPE ... [options of fit] [--gpu NAME] [--utilisation SHARE] [--json FILE]"
    )
    parser.add_argument("--gpu", default="a100-80", metavar="NAME", help=", ".join(GPUS))
    parser.add_argument("--utilisation", type=float, default=0.4, help="share of the GPU's peak FLOPS, up to 1")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the plan as numbers")
    options, words = parser.parse_known_args(arguments)
    if options.json and options.json.is_dir():
        raise InputError(f"--json must name a file, got the folder {options.json}")
    setting, steps = setting_of(configuration(resolve_recipes(words)))
    plan = make_plan(setting, steps, options.gpu, options.utilisation)
    print("\n".join(report(plan)))
    if options.json:
        write_text(options.json, json.dumps(plan.to_json(), indent=2) + "\n")


def sweep(arguments: list[str]) -> None:
    """Run recipes × seeds."""
    from fp_lightning.training.sweep import BASE, RESULTS, markdown, plan, sweep

    parser = make_parser("sweep", "Run fit and test of recipes × seeds, resume them, and write one table of metrics.")
    parser.add_argument("arms", nargs="+", help="recipes with one difference each, and `base` for none")
    parser.add_argument("--base", nargs="+", metavar="RECIPE", default=["tiny", "ablations/base"], help="of all arms")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of each arm")
    parser.add_argument("--out", required=True, help="folder for the runs and results.csv")
    parser.add_argument("--jobs", type=int, default=1, help="number of parallel runs")
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="local processes, or Ray")
    parser.add_argument(
        "--metrics", nargs="+", default=["psnr_moving", "psnr", "ssim"], help="metrics of the printed table"
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="options for all runs, without the --"
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


def bench(arguments: list[str]) -> None:
    """Run benchmarks."""
    if arguments[:1] == ["gpu"]:
        return _bench_gpu(arguments[1:])
    from fp_lightning.bench.run import BENCHMARKS, bench

    parser = make_parser("bench", "Measure against a reference in the same run. Quote the ratio, not the seconds.")
    parser.add_argument(
        "names",
        nargs="*",
        help=f"benchmarks: {', '.join(BENCHMARKS)}; without names all run; or gpu alone",
    )
    parser.add_argument("--rounds", type=int, default=3, help="number of alternating runs of both sides")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    options = parser.parse_args(arguments)
    bench(options.names, options.rounds, options.json)


def _bench_gpu(arguments: list[str]) -> None:
    """Measure a GPU."""
    from fp_lightning.bench.gpu import bench_gpu

    parser = make_parser(
        "bench gpu",
        "Measure edits, training steps and the matching loss at full size on a GPU, beside diffusers.",
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="budget of time; the rest is named as not measured")
    parser.add_argument("--dry-run", action="store_true", help="run the same on the CPU with the tiny build")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")
    options = parser.parse_args(arguments)
    bench_gpu(options.minutes, options.dry_run, options.json, options.markdown)


def quickstart(arguments: list[str]) -> None:
    """Run all steps on the tiny build."""
    from fp_lightning.cli.quickstart import quickstart

    parser = make_parser(
        "quickstart", "Run clips, pairs, fit, validate and predict with the tiny build in about ten minutes."
    )
    parser.add_argument("--videos", nargs="*", default=[], help="your videos instead of procedural clips")
    parser.add_argument("--out", default="runs/quickstart", help="folder for everything; replaced")
    parser.add_argument("--steps", type=int, default=700, help="training steps of 8 pairs")
    parser.add_argument("--clips", type=int, default=128, help="procedural clips")
    parser.add_argument("--weights", choices=("pretrained", "random"), default="pretrained", help="initial weights")
    options = parser.parse_args(arguments)
    quickstart(options.videos, Path(options.out), options.steps, options.clips, options.weights)
