"""The baselines by name: what each edits by, and how it is built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from diffusers import ControlNetModel
from torch import Tensor

from fp_lightning.baselines import drag_diffusion, magic_fixup, sde_drag
from fp_lightning.baselines.diff_editor import DiffEditor
from fp_lightning.baselines.drag_diffusion import DragDiffusion
from fp_lightning.baselines.example import Example
from fp_lightning.baselines.floors import Copy, Warp
from fp_lightning.baselines.image_prompt import load_image_prompt
from fp_lightning.baselines.lightning_drag import load_lightning_drag
from fp_lightning.baselines.lora import LoraSettings
from fp_lightning.baselines.magic_fixup import load_magic_fixup
from fp_lightning.baselines.masactrl import MasaCtrl
from fp_lightning.baselines.sde_drag import SdeDrag
from fp_lightning.baselines.stable_diffusion import load_part, load_stable_diffusion
from fp_lightning.errors import InputError


class Baseline(Protocol):
    """A method: a photo with its signal and region → the edited photo."""

    def cost(self, example: Example) -> int:
        """Return how many network evaluations one example takes at most."""

    def __call__(self, example: Example, generator: torch.Generator) -> Tensor:
        """Return the edited photo [3, H, W] in [-1, 1] at the example's size."""


@dataclass(frozen=True)
class Options:
    """How a baseline is built.

    Attributes:
        models: folders in diffusers' format, in the order of `Entry.models`.
        steps: noise levels; None for the method's own number.
        lora_steps: training steps of the adapters on each photo; None for the method's own number.
        dtype: type of the networks.
        device: device of the networks.
        accept_license: consent to the method's licence, if it restricts use.
    """

    models: Sequence[str] = ()
    steps: int | None = None
    lora_steps: int | None = None
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    accept_license: bool = False


@dataclass(frozen=True)
class Entry:
    """A baseline that can be chosen.

    Attributes:
        build: makes it.
        signal: what it edits by: "sketch", "coarse", "points", or "" for none.
        models: what its model folders hold.
        optional: what further model folders may hold.
        half: whether it may run in half precision.
        licence: its licence, if it restricts use.
    """

    build: Callable[[Options], Baseline]
    signal: Literal["sketch", "coarse", "points", ""]
    models: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    half: bool = True
    licence: str = ""


def _given(options: Options, lora: LoraSettings | None = None) -> dict[str, Any]:
    """Return the arguments that differ from the method's own."""
    given: dict[str, Any] = {} if options.steps is None else {"steps": options.steps}
    if lora is not None and options.lora_steps is not None:
        given["lora"] = replace(lora, steps=options.lora_steps)
    return given


def _drag_diffusion(options: Options) -> Baseline:
    sd = load_stable_diffusion(options.models[0], 4, options.dtype, options.device)
    return DragDiffusion(sd, **_given(options, drag_diffusion.LORA))


def _sde_drag(options: Options) -> Baseline:
    sd = load_stable_diffusion(options.models[0], 4, options.dtype, options.device)
    return SdeDrag(sd, **_given(options, sde_drag.LORA))


def _diff_editor(options: Options) -> Baseline:
    sd = load_stable_diffusion(options.models[0], 4, options.dtype, options.device)
    prompts = [load_image_prompt(sd.unet, Path(folder)) for folder in options.models[1:]]
    return DiffEditor(sd, image_prompt=prompts[0] if prompts else None, **_given(options))


def _masactrl(options: Options) -> Baseline:
    sd = load_stable_diffusion(options.models[0], 4, options.dtype, options.device)
    folder = Path(options.models[1])
    control = load_part(ControlNetModel, folder.parent, folder.name, options.dtype).to(options.device)
    return MasaCtrl(sd, control, **_given(options))


def _lightning_drag(options: Options) -> Baseline:
    base, model = options.models
    return load_lightning_drag(base, model, options.dtype, options.device, **_given(options))


def _magic_fixup(options: Options) -> Baseline:
    return load_magic_fixup(options.models[0], options.dtype, options.device, **_given(options))


SD = "Stable Diffusion 1.5"
BASELINES: dict[str, Entry] = {
    "copy": Entry(lambda options: Copy(), ""),
    "warp": Entry(lambda options: Warp(), "points"),
    "masactrl": Entry(_masactrl, "sketch", (SD, "its scribble ControlNet")),
    "drag_diffusion": Entry(_drag_diffusion, "points", (SD,), half=False),
    "diff_editor": Entry(_diff_editor, "points", (SD,), ("its image prompt",), half=False),
    "sde_drag": Entry(_sde_drag, "points", (SD,)),
    "lightning_drag": Entry(_lightning_drag, "points", (f"{SD} for inpainting", "converted LightningDrag")),
    "magic_fixup": Entry(_magic_fixup, "coarse", ("converted Magic Fixup",), licence=magic_fixup.LICENCE),
}


def build_baseline(name: str, options: Options) -> Baseline:
    """Build the baseline called `name`, a key of `BASELINES`.

    Raises:
        InputError: a licence is not accepted, a model folder is not given, missing or damaged, or an option does not
            fit.
    """
    entry = BASELINES[name]
    if entry.licence and not options.accept_license:
        raise InputError(f"{entry.licence}; pass --accept-license")
    least, most = len(entry.models), len(entry.models + entry.optional)
    if not least <= len(options.models) <= most:
        wanted = " and ".join(entry.models) or "no model"
        if entry.optional:
            wanted += ", and if you like " + " and ".join(entry.optional)
        count = f"{least} to {most}" if most > least else least
        raise InputError(f"{name} needs {count} --model folders ({wanted}), got {len(options.models)}")
    if options.lora_steps is not None and options.lora_steps < 0:
        raise InputError(f"--lora-steps must be 0 or more, got {options.lora_steps}")
    if options.dtype is not torch.float32 and not entry.half:
        raise InputError(f"{name} needs float32 for its gradients; leave out --dtype")
    return entry.build(options)
