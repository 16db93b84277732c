"""`fp-lightning convert`: weights from one format to another."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from fp_lightning.cli.parsing import make_parser


def convert(arguments: list[str]) -> None:
    """Convert weights between formats."""
    from fp_lightning.model.svd.load import SVD

    def common(kind: str, text: str, given: str, out: str) -> argparse.ArgumentParser:
        parser = kinds.add_parser(kind, help=text, description=text)
        parser.add_argument("given", metavar="IN", help=given)
        parser.add_argument("out", metavar="OUT", type=Path, help=f"{out}; must not exist yet")
        parser.add_argument(
            "--dtype", choices=("float32", "float16", "bfloat16"), help="type of all weights (default: as in each file)"
        )
        return parser

    parser = make_parser("convert", "Convert between released weights, Lightning checkpoints and pipeline folders.")
    names = "released|checkpoint|pipeline|lora|lightning_drag|magic_fixup"
    kinds = parser.add_subparsers(dest="kind", required=True, metavar=names)
    released = common(
        "released", "the released files to a pipeline folder", "folder of the two files, or hub id", "folder"
    )
    checkpoint = common("checkpoint", "a checkpoint of fit to a pipeline folder", "checkpoint", "folder")
    common("pipeline", "a pipeline folder to the released files", "pipeline folder, or hub id", "folder of two files")
    lora = common("lora", "a checkpoint's LoRA adapters to a file that diffusers loads", "checkpoint", "folder")
    common("lightning_drag", "LightningDrag's released files for `baseline`", "folder of its checkpoints", "folder")
    magic_fixup = common("magic_fixup", "Magic Fixup's released file for `baseline`", "its checkpoint", "folder")
    magic_fixup.add_argument("--accept-license", action="store_true", help="accept its licence, which restricts use")
    for each in (checkpoint, lora):
        each.add_argument(
            "--weights",
            choices=("auto", "ema", "raw"),
            default="auto",
            help="averaged or last weights; auto: as predict",
        )
    model = "SVD in diffusers' format, folder or hub id: its VAE, image encoder, scheduler and configuration are used"
    for each, default, note in ((released, SVD, ""), (checkpoint, None, " (default: the checkpoint's own)")):
        each.add_argument("--model", default=default, help=model + note)
        each.add_argument("--variant", help="variant of SVD's weight files, for example fp16")
        each.add_argument(
            "--size", nargs=2, type=int, metavar=("H", "W"), default=(576, 1024) if default else None,
            help="network size, px" + note,
        )  # fmt: skip
    options = vars(parser.parse_args(arguments))
    import torch

    from fp_lightning.baselines.lightning_drag_weights import convert_lightning_drag
    from fp_lightning.baselines.magic_fixup_weights import convert_magic_fixup
    from fp_lightning.weights import convert
    from fp_lightning.weights.tensorfiles import WeightsError

    kind, given, out = (options.pop(name) for name in ("kind", "given", "out"))
    dtype = options.pop("dtype")
    functions: dict[str, Callable[..., convert.Converted]] = {
        "released": convert.convert_released,
        "checkpoint": convert.convert_checkpoint,
        "pipeline": convert.convert_pipeline,
        "lora": convert.convert_lora,
        "lightning_drag": convert_lightning_drag,
        "magic_fixup": convert_magic_fixup,
    }
    try:
        print(functions[kind](given, out, **options, dtype=getattr(torch, dtype) if dtype else None))
    except WeightsError as error:
        print("\n".join(error.details), file=sys.stderr)
        raise
