"""`fp-lightning baseline`: edit the photos of a benchmark with another method."""

from __future__ import annotations

from pathlib import Path

from fp_lightning.cli.parsing import make_parser

DTYPES = ("float32", "bfloat16", "float16")


def baseline(arguments: list[str]) -> None:
    """Run a baseline over a folder of inputs or a drag benchmark."""
    import torch

    from fp_lightning.baselines.example import find_drags, find_files
    from fp_lightning.baselines.registry import BASELINES, Options, build_baseline
    from fp_lightning.baselines.run import AREA, run_baseline

    parser = make_parser("baseline", "Edit photos with another method, for `fp-lightning evaluate`.")
    parser.add_argument("name", choices=sorted(BASELINES), help="the method")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--inputs", type=Path, metavar="DIR", help="inputs/ of `fp-lightning benchmark`")
    kind.add_argument("--drags", type=Path, metavar="DIR", help="DragBench, VFD-Bench or ReD Bench, as published")
    parser.add_argument("--out", type=Path, required=True, help="folder of the edited photos, NAME.png")
    parser.add_argument("--model", nargs="+", default=[], metavar="DIR", help="model folders in diffusers' format")
    parser.add_argument("--steps", type=int, help="noise levels (default: as published)")
    parser.add_argument("--lora-steps", type=int, help="training steps on each photo (default: as published)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all noise")
    parser.add_argument("--area", type=int, default=AREA, help="pixels at which the method works")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="type of the networks")
    parser.add_argument("--accept-license", action="store_true", help="accept a method's licence that restricts use")
    options = parser.parse_args(arguments)
    files = find_files(options.inputs, BASELINES[options.name].signal) if options.inputs else find_drags(options.drags)
    dtype = getattr(torch, options.dtype)
    chosen = Options(options.model, options.steps, options.lora_steps, dtype, options.device, options.accept_license)
    method = build_baseline(options.name, chosen)
    area = options.area if BASELINES[options.name].models else None  # only networks need their own size
    written = run_baseline(method, files, options.out, options.seed, area)
    print(f"{written} edited photos in {options.out}")
