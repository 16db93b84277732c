"""Convert released weights and Lightning checkpoints to pipeline folders, and pipeline folders to released weights.

A pipeline folder has diffusers' format. `FramePainterPipeline.from_pretrained` loads it, and `fit` starts from it with
`--model.editor.model FOLDER`. Weights are streamed: at most one tensor is in memory at a time, apart from
memory-mapped checkpoints. All names and shapes are checked before anything is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import EulerDiscreteScheduler

from fp_lightning.errors import InputError
from fp_lightning.files import written_folder
from fp_lightning.model.control import INJECTION_FACTOR, ControlEncoder
from fp_lightning.model.editor import OFFICIAL, FramePainter
from fp_lightning.model.svd.load import SVD, local_folder
from fp_lightning.model.svd.prior import SVDPrior
from fp_lightning.model.svd.specialise import idle_weights
from fp_lightning.model.svd.unet import FramePainterUNet
from fp_lightning.model.trainable import ADAPTER
from fp_lightning.weights.checkpoints import complete, read_checkpoint, trained_weights
from fp_lightning.weights.folders import (
    empty_networks,
    empty_part,
    open_part,
    read_index,
    read_json,
    write_index,
    write_parts,
)
from fp_lightning.weights.model_card import model_card, pipeline_settings
from fp_lightning.weights.tensorfiles import StoredTensor, check_weights, open_tensors, plain_names, write_tensors

RELEASED_REPO = "Yabo/FramePainter"
RELEASED = {
    "unet": "unet_diffusion_pytorch_model.safetensors",
    "control_encoder": "encoder_diffusion_pytorch_model.safetensors",
}
SVD_SIZE = (576, 1024)
LORA_FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for
_BRANCH, _RELEASED_BRANCH = ".attn1.processor.", ".sparse_attention."  # the only difference between the keys
Weights = dict[str, StoredTensor]


@dataclass(frozen=True)
class Converted:
    """The result of a conversion: the output folder, the numbers of tensors and parameters, and notes for the user."""

    out: Path
    tensors: int
    parameters: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.out}: {self.tensors} tensors, {self.parameters:,} parameters"
        return "\n".join([text, *self.notes])


def convert_released(
    released: str,
    out: str | Path,
    model: str = SVD,
    variant: str | None = None,
    dtype: torch.dtype | None = None,
    size: Sequence[int] = SVD_SIZE,
) -> Converted:
    """Convert the released files to a pipeline folder with the `official` settings.

    Args:
        released: a folder or hub id with `unet_diffusion_pytorch_model.safetensors` and
            `encoder_diffusion_pytorch_model.safetensors`.
        out: the pipeline folder. It must not exist, or be empty.
        model: SVD as a folder in diffusers' format or a hub id. It provides the U-Net's configuration, the VAE, the
            image encoder and the scheduler. Its U-Net weights are not read.
        variant: variant of SVD's weight files, for example "fp16".
        dtype: type of all weights; None keeps the type of each file.
        size: (height, width) in pixels at which the network works.

    Raises:
        InputError: a file is missing or unreadable, its keys or shapes do not match the network, or `out` is not
            empty.
    """
    folder = local_folder(released, list(RELEASED.values()), RELEASED_REPO)
    weights = {part: plain_names(open_tensors(folder / name), released) for part, name in RELEASED.items()}
    weights["unet"] = {name.replace(_RELEASED_BRANCH, _BRANCH): tensor for name, tensor in weights["unet"].items()}
    settings = {**OFFICIAL, "signals": ["sketch"]}
    return _write_pipeline(Path(out), weights, model, variant, dtype, size, settings, released)


def convert_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    weights: Literal["auto", "ema", "raw"] = "auto",
    model: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype | None = None,
    size: Sequence[int] | None = None,
) -> Converted:
    """Convert a Lightning checkpoint to a pipeline folder. Its edits equal those of `predict`.

    Args:
        checkpoint: a checkpoint written by `fit`. It is read with torch's restricted unpickler, which runs no code
            from the file.
        out: the pipeline folder. It must not exist, or be empty.
        weights: "ema" for the average that `TrainableEMA` stores, "raw" for the last weights, "auto" for the average
            if the checkpoint has one, as in `predict`.
        model, size: see `convert_released`. The defaults are those of the training run.
        variant, dtype: see `convert_released`.

    Raises:
        InputError: the file is not a checkpoint of this package, or a reason of `convert_released`.
    """
    state = read_checkpoint(Path(checkpoint))
    origin = state.get("origin", {})
    model, size = model or origin.get("model"), size or origin.get("size")
    if model is None or size is None:
        raise InputError(
            f"{checkpoint} does not say its {'model' if model is None else 'size'}; "
            f"pass {'--model FOLDER' if model is None else '--size HEIGHT WIDTH'}"
        )
    trained, note = trained_weights(state, checkpoint, weights)
    if origin.get("trains", "all") != "all":
        folder = local_folder(model, ["unet/*"])
        trained["unet"] = complete(trained["unet"], open_part(folder, "unet", variant), f"{checkpoint} and {model}")
    signals = {"signals": list(origin["signals"])} if origin.get("signals") else {}
    written = _write_pipeline(
        Path(out), trained, model, variant, dtype, size, {**state["editor"], **signals}, str(checkpoint), idle=True
    )
    return Converted(written.out, written.tensors, written.parameters, (note, *written.notes))


def convert_lora(
    checkpoint: str | Path,
    out: str | Path,
    weights: Literal["auto", "ema", "raw"] = "auto",
    dtype: torch.dtype | None = None,
) -> Converted:
    """Convert the LoRA adapters of a Lightning checkpoint to a folder that diffusers loads.

    Load it with `unet.load_lora_adapter(FOLDER, prefix=None, use_safetensors=True)`. This works for
    `FramePainterUNet` and for every diffusers model with `PeftAdapterMixin`.

    The folder has neither the matching branch nor the control encoder. `convert_checkpoint` writes all weights, with
    the adapters merged.

    Args:
        checkpoint, weights: see `convert_checkpoint`. The checkpoint was trained with `trains: lora`.
        out: the folder. It must not exist, or be empty.
        dtype: type of all weights; None keeps the types of the checkpoint.

    Raises:
        InputError: the file is not a checkpoint of this package, it has no adapters, or `out` is not empty.
    """
    trained, note = trained_weights(read_checkpoint(Path(checkpoint)), checkpoint, weights)
    unet = trained["unet"].items()
    adapters = {name.replace(f".{ADAPTER}.", "."): tensor for name, tensor in unet if ".lora_" in name}
    if not adapters:
        raise InputError(f"{checkpoint} has no LoRA adapters; train them with --model.editor.trains lora")
    with written_folder(Path(out)) as partial:
        write_tensors(partial / LORA_FILE, adapters, dtype)
    return summary(Path(out), {"unet": adapters}, (note,))


def convert_pipeline(pipeline: str, out: str | Path, dtype: torch.dtype | None = None) -> Converted:
    """Convert a pipeline folder to the file names and keys of the released code.

    Args:
        pipeline: a folder that `FramePainterPipeline` loads, or a hub id.
        out: folder for the two files. It must not exist, or be empty.
        dtype: type of all weights; None keeps the type of each file. The released files are float16.

    Raises:
        InputError: the folder is not a pipeline, has no matching attention or is damaged, or `out` is not empty.
    """
    folder = local_folder(pipeline, ["model_index.json", "unet/*", "control_encoder/*"])
    index = read_index(folder)
    config = read_json(folder / "unet" / "config.json")
    if config.get("attention") != "matching":
        raise InputError(
            f"{pipeline} has {config.get('attention')} attention; the released files need matching attention"
        )
    networks = {
        "unet": empty_part(folder, "unet", FramePainterUNet.from_config),
        "control_encoder": empty_part(folder, "control_encoder", ControlEncoder.from_config),
    }
    weights = {part: open_part(folder, part) for part in RELEASED}
    check_weights(networks, weights, pipeline)
    weights["unet"] = {name.replace(_BRANCH, _RELEASED_BRANCH): tensor for name, tensor in weights["unet"].items()}
    with written_folder(Path(out)) as partial:
        for part, name in RELEASED.items():
            write_tensors(partial / name, weights[part], dtype)
    settings = {"match_queries": config.get("match_queries"), **{k: index.get(k) for k in OFFICIAL if k in index}}
    differing = [f"{name} {value}" for name, value in settings.items() if OFFICIAL[name] != value]
    notes = []
    if differing:
        notes.append(f"note: the released code uses {OFFICIAL}; this pipeline was trained with {', '.join(differing)}")
    if index.get("distilled_steps"):
        notes.append("note: the released code has no solver for a distilled editor")
    return summary(Path(out), weights, tuple(notes))


def _write_pipeline(
    out: Path,
    weights: dict[str, Weights],
    model: str,
    variant: str | None,
    dtype: torch.dtype | None,
    size: Sequence[int],
    settings: dict[str, Any],
    where: str,
    idle: bool = False,
) -> Converted:
    """Check everything, then write a pipeline folder.

    Args:
        out: the pipeline folder.
        weights: of the U-Net and the control encoder.
        model, variant, dtype, size: see `convert_released`.
        settings: settings of the editor and the pipeline.
        where: origin of `weights`, for error messages.
        idle: fill in missing `idle_weights` with zeros; checkpoints do not store them because they do not train.

    Raises:
        InputError: see `convert_released`.
    """
    patterns = ["unet/config.json", "control_encoder/config.json", "vae/*", "image_encoder/*", "scheduler/*"]
    svd = local_folder(model, patterns)
    attention: dict[str, Any] = {
        name: settings.pop(name) for name in ("attention", "match_queries") if name in settings
    }
    networks: dict[str, Any] = dict(empty_networks(svd, attention))
    scheduler = EulerDiscreteScheduler.from_config(read_json(svd / "scheduler" / "scheduler_config.json"))
    settings = {"control_frames": "target", "control_factor": INJECTION_FACTOR, "signals": None, **settings}
    control = {name: settings[name] for name in ("control_frames", "control_factor")}
    prior = SVDPrior(networks["unet"], networks["vae"], networks["image_encoder"], scheduler)
    editor = FramePainter(prior, networks["control_encoder"], **control)
    editor.check_size((size[0], size[1]))
    if idle:
        zeros = {name: torch.zeros(p.shape) for name, p in idle_weights(prior.unet).items()}
        weights["unet"] = {name: StoredTensor(t.shape, t.dtype, t.clone) for name, t in zeros.items()} | weights["unet"]
    frozen = {part: open_part(svd, part, variant) for part in ("vae", "image_encoder")}
    check_weights({part: networks[part] for part in weights}, weights, where)
    check_weights({part: networks[part] for part in frozen}, frozen, str(model))
    weights = {**weights, **frozen}
    with written_folder(out) as partial:
        write_index(partial, {**networks, "scheduler": scheduler}, {"size": list(size), **settings})
        card = model_card(out.name, pipeline_settings(editor.settings(), size), settings["signals"])
        (partial / "README.md").write_text(card)
        write_parts(partial, networks, weights, dtype)
        scheduler.save_pretrained(partial / "scheduler")
    return summary(out, weights, ())


def summary(out: Path, weights: Mapping[str, Weights], notes: tuple[str, ...]) -> Converted:
    """Return the result of a conversion, with the tensors and parameters of all parts counted."""
    shapes = [tensor.shape for part in weights.values() for tensor in part.values()]
    return Converted(out, len(shapes), sum(torch.Size(shape).numel() for shape in shapes), notes)
