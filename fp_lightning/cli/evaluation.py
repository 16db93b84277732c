"""`fp-lightning evaluate`, `benchmark` and `study`: commands that compare systems."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from fp_lightning.cli.parsing import make_parser
from fp_lightning.errors import InputError
from fp_lightning.files import write_text


def evaluate(arguments: list[str]) -> None:
    """Score folders of images on the same examples."""
    from fp_lightning.evaluation.compare import evaluate, markdown
    from fp_lightning.evaluation.perceptual import CLIP_MODEL
    from fp_lightning.pairs.flow.registry import FLOWS

    parser = make_parser("evaluate", "Score folders of images, NAME.png for each example, and compare them.")
    parser.add_argument(
        "predictions", nargs="+", type=Path, help="folders of NAME.png; all are compared with the first"
    )
    add_examples(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for metrics, comparison and report")
    parser.add_argument(
        "--require", metavar="NAMES", help="fail if these cannot be measured: lpips, clip_fid or both with a comma"
    )
    parser.add_argument("--download", action="store_true", help="fetch missing weights of LPIPS and CLIP")
    parser.add_argument("--clip-model", default=CLIP_MODEL, help="CLIP ViT-B/32, folder or hub id")
    parser.add_argument("--flow", choices=sorted(FLOWS), default="dis", help="flow estimator for drags and lines")
    parser.add_argument("--tracker", choices=("flow", "dift"), default="flow", help="tracker that finds dragged points")
    parser.add_argument(
        "--dift-model", default="stabilityai/stable-diffusion-2-1", help="model of the dift tracker, folder or hub id"
    )
    parser.add_argument("--resize", action="store_true", help="resize images to the size of their example")
    parser.add_argument("--allow-missing", action="store_true", help="score only the examples that all folders have")
    parser.add_argument("--samples", type=int, default=200, help="most samples in the report")
    options = vars(parser.parse_args(arguments))
    examples, out = open_examples(options), options.pop("out")
    names = ("download", "clip_model", "flow", "tracker", "dift_model")
    metrics = {name: options.pop(name) for name in names}
    metrics["require"] = tuple(filter(None, (options.pop("require") or "").split(",")))
    folders, samples = options.pop("predictions"), options.pop("samples")
    comparison = evaluate(folders, examples, out, metrics, **options, max_samples=samples)
    print(markdown(comparison))
    print(f"Report: {out / 'report.html'}")


def benchmark(arguments: list[str]) -> None:
    """Hold pairs out, and write the inputs of an evaluation."""
    from fp_lightning.evaluation.examples import PairExamples, write_examples
    from fp_lightning.pairs.heldout import choose_pairs, write_list

    parser = make_parser("benchmark", "Hold pairs out of training, and write the inputs for any system.")
    add_examples(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for heldout.json and inputs/")
    parser.add_argument("--count", type=int, default=200, help="pairs held out, of whole videos")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of pairs and signals")
    options = vars(parser.parse_args(arguments))
    given = options["list"]
    out, count, seed = (options.pop(name) for name in ("out", "count", "seed"))
    if count < 1:
        raise InputError(f"--count must be 1 or more, got {count}")
    examples = open_examples(options)
    if isinstance(examples, PairExamples) and given is None:
        chosen = choose_pairs(examples.store, count, seed)
        write_list(examples.store, chosen, out / "heldout.json", seed)
        print(f"{len(chosen)} pairs of {len({examples.store.videos[i] for i in chosen})} videos in {out}/heldout.json")
        print(f"Train without them: --data.holdout {out}/heldout.json")
        examples = PairExamples(examples.store.root, out / "heldout.json")
    write_examples(examples, out / "inputs", seed)
    print(f"Inputs of {len(examples.names)} examples in {out}/inputs")


def study(arguments: list[str]) -> None:
    """Build or score a study among people."""
    from fp_lightning.evaluation.study import QUESTIONS, build_study, score_study

    parser = make_parser(
        "study", "Ask people which of two systems they prefer: build the page for raters, or score their answers."
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="build|score")
    build = kinds.add_parser("build", help="study.html for raters, key.json for you")
    build.add_argument("first", type=Path, help="folder of predictions")
    build.add_argument("second", type=Path, help="folder of predictions")
    add_examples(build)
    build.add_argument("--out", type=Path, required=True, help="folder for the page and its key")
    build.add_argument("--count", type=int, default=100, help="number of examples, drawn at random")
    build.add_argument("--seed", type=int, default=0, help="seed of the choice and order of examples")
    build.add_argument("--resize", action="store_true", help="resize images to the size of their example")
    score = kinds.add_parser("score", help="preference rates with 95 %% intervals")
    score.add_argument("key", type=Path, help="key.json of the study")
    score.add_argument("answers", type=Path, nargs="+", help="answer files of raters")
    score.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    options = vars(parser.parse_args(arguments))
    if options.pop("kind") == "build":
        if options["count"] < 1:
            raise InputError(f"--count must be 1 or more, got {options['count']}")
        examples = open_examples(options)
        page = build_study(options.pop("first"), options.pop("second"), examples, **options)
        print(f"Give raters {page}, and keep {page.with_name('key.json')} from them.")
        return
    result = score_study(options["key"], options["answers"])
    if options["json"]:
        write_text(options["json"], json.dumps(result, indent=2) + "\n")
    first, second = result["systems"]
    print(f"{first} against {second}: {result['answers']} answers of {result['raters']} raters")
    for name, found in result["questions"].items():
        low, high = found["interval"]
        counts = f"{found['wins']} for it, {found['ties']} the same, {found['losses']} against"
        print(f"{QUESTIONS[name]} {first} {found['preferred']:.1%} ({low:.1%} to {high:.1%}; {counts})")


def add_examples(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose examples."""
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--pairs", metavar="DIR", help="folder of pairs, as `fp-lightning pairs` wrote it")
    kind.add_argument("--drags", metavar="DIR", help="a drag benchmark as published, such as DragBench")
    parser.add_argument("--list", type=Path, metavar="FILE", help="use only the pairs of this list")


def open_examples(options: dict[str, Any]) -> Any:
    """Open the examples that the options choose, and remove these options."""
    from fp_lightning.evaluation.benchmarks import DragExamples
    from fp_lightning.evaluation.examples import PairExamples

    pairs, drags, listed = (options.pop(name) for name in ("pairs", "drags", "list"))
    if drags and listed:
        raise InputError("--list chooses among --pairs, it cannot go with --drags; leave it out")
    return DragExamples(drags) if drags else PairExamples(pairs, listed)
