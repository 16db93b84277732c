"""Released weights, Lightning checkpoints and pipeline folders, each from the other.

A pipeline folder is diffusers' format: `FramePainterPipeline.from_pretrained` loads it, and `fit` starts from
it as `--model.editor.model`. Weights are streamed: no more than one tensor is in memory at a time, apart from
what the system maps from a checkpoint. Every key and shape is checked before anything is written.
"""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import EulerDiscreteScheduler

from fp_lightning.errors import InputError
from fp_lightning.model.control import INJECTION_FACTOR, ControlEncoder
from fp_lightning.model.editor import OFFICIAL, FramePainter
from fp_lightning.model.svd.load import SVD, local_folder
from fp_lightning.model.svd.prior import SVDPrior
from fp_lightning.model.svd.specialise import idle_weights
from fp_lightning.model.svd.unet import FramePainterUNet
from fp_lightning.model.trainable import ADAPTER
from fp_lightning.weights.folders import STEMS, empty_networks, open_part, read_index, read_json, write_index
from fp_lightning.weights.model_card import model_card, pipeline_settings
from fp_lightning.weights.tensorfiles import StoredTensor, check_weights, open_tensors, write_tensors

RELEASED_REPO = "Yabo/FramePainter"
RELEASED = {
    "unet": "unet_diffusion_pytorch_model.safetensors",
    "control_encoder": "encoder_diffusion_pytorch_model.safetensors",
}
SVD_SIZE = (576, 1024)
LORA_FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for
_BRANCH, _RELEASED_BRANCH = ".attn1.processor.", ".sparse_attention."  # the one difference between the keys
Weights = dict[str, StoredTensor]


@dataclass(frozen=True)
class Converted:
    """What was written."""

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
    """The released files → a pipeline folder with the `official` settings.

    Args:
        released: a folder with `unet_diffusion_pytorch_model.safetensors` and
            `encoder_diffusion_pytorch_model.safetensors`, or the hub id of one.
        out: the pipeline folder; must not exist, or be empty.
        model: SVD, for the U-Net's configuration, the VAE, the image encoder and the scheduler: a folder in
            diffusers' format or a hub id. Its U-Net weights are not read.
        variant: of SVD's weight files, e.g. "fp16".
        dtype: of all weights; None keeps what each file has.
        size: (height, width) in pixels at which the network works.

    Raises:
        InputError: a file is missing or unreadable, or its keys or shapes are not the network's.
    """
    folder = local_folder(released, list(RELEASED.values()), RELEASED_REPO)
    given = {part: open_tensors(folder / name) for part, name in RELEASED.items()}
    given["unet"] = {name.replace(_RELEASED_BRANCH, _BRANCH): tensor for name, tensor in given["unet"].items()}
    return _write_pipeline(Path(out), given, model, variant, dtype, size, {**OFFICIAL, "signals": ["sketch"]}, released)


def convert_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    weights: Literal["auto", "ema", "raw"] = "auto",
    model: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype | None = None,
    size: Sequence[int] | None = None,
) -> Converted:
    """A Lightning checkpoint → a pipeline folder whose edits are those of `predict`.

    Args:
        checkpoint: of `fit`. It is read with torch's restricted unpickler, which runs no code of the file.
        out: the pipeline folder; must not exist, or be empty.
        weights: "ema", the average that `TrainableEMA` keeps; "raw", the last ones; "auto", the average
            if there is one, as `predict` does.
        model, size: as in `convert_released`; by default what the checkpoint was trained on.
        variant, dtype: see `convert_released`.

    Raises:
        InputError: the file is no checkpoint of this package, or as in `convert_released`.
    """
    state = _read_checkpoint(Path(checkpoint))
    origin = state.get("origin", {})
    model, size = model or origin.get("model"), size or origin.get("size")
    if model is None or size is None:
        raise InputError(
            f"{checkpoint} does not say its {'model' if model is None else 'size'}; "
            f"pass {'--model FOLDER' if model is None else '--size HEIGHT WIDTH'}"
        )
    given, note = _trained_weights(state, checkpoint, weights)
    if origin.get("trains", "all") != "all":
        folder = local_folder(model, ["unet/*"])
        given["unet"] = _completed(given["unet"], open_part(folder, "unet", variant), f"{checkpoint} and {model}")
    signals = {"signals": list(origin["signals"])} if origin.get("signals") else {}
    written = _write_pipeline(
        Path(out), given, model, variant, dtype, size, {**state["editor"], **signals}, str(checkpoint), idle=True
    )
    return Converted(written.out, written.tensors, written.parameters, (note, *written.notes))


def convert_lora(
    checkpoint: str | Path,
    out: str | Path,
    weights: Literal["auto", "ema", "raw"] = "auto",
    dtype: torch.dtype | None = None,
) -> Converted:
    """The LoRA adapters of a Lightning checkpoint → a folder that diffusers loads.

    `unet.load_lora_adapter(FOLDER, prefix=None, use_safetensors=True)` does, of `FramePainterUNet` and of every class
    of diffusers' with `PeftAdapterMixin`.

    The matching branch and the control encoder, which train beside them, are not in it: `convert_checkpoint` writes
    all, with the adapters merged.

    Args:
        checkpoint, weights: see `convert_checkpoint`; trained with `trains: lora`.
        out: the folder; must not exist, or be empty.
        dtype: of all weights; None keeps what the checkpoint has.

    Raises:
        InputError: the file is no checkpoint of this package, or it has no adapters.
    """
    given, note = _trained_weights(_read_checkpoint(Path(checkpoint)), checkpoint, weights)
    adapters = {name.replace(f".{ADAPTER}.", "."): tensor for name, tensor in given["unet"].items() if ".lora_" in name}
    if not adapters:
        raise InputError(f"{checkpoint} has no LoRA adapters; train them with --model.editor.trains lora")
    with _folder_beside(Path(out)) as partial:
        write_tensors(partial / LORA_FILE, adapters, dtype)
    return _converted(Path(out), {"unet": adapters}, (note,))


def _trained_weights(
    state: Mapping[str, Any], checkpoint: str | Path, weights: Literal["auto", "ema", "raw"]
) -> tuple[dict[str, Weights], str]:
    """The weights that a checkpoint carries, by part, and a note that says which they are."""
    average = state.get("callbacks", {}).get("TrainableEMA", {}).get("average")
    if weights == "ema" and not average:
        raise InputError(f"{checkpoint} keeps no averaged weights; train with callbacks.TrainableEMA, or use raw")
    chosen = state["state_dict"] if weights == "raw" or not average else average
    given: dict[str, Weights] = {part: {} for part in RELEASED}
    for name, tensor in chosen.items():
        owner, part, key = (*name.replace("editor.prior.", "editor.", 1).split(".", 2), "", "")[:3]
        if owner != "editor" or part not in given:
            raise InputError(f"{checkpoint} holds {name}, which is no weight of an editor; convert what `fit` wrote")
        given[part][key] = StoredTensor(tuple(tensor.shape), tensor.dtype, tensor.clone)
    kind = "raw" if chosen is not average else "average (EMA)"
    return given, f"weights: {kind}, after {state.get('global_step', '?')} steps"


def _completed(trained: Weights, base: Weights, where: str) -> Weights:
    """What trained beside what did not: the base's other weights, and those that adapters are merged into."""
    whole = base | {name: tensor for name, tensor in trained.items() if ".lora_" not in name}
    for name, down in trained.items():
        if f".lora_A.{ADAPTER}." not in name:
            continue
        merged = name.replace(f".lora_A.{ADAPTER}.", ".")
        up = trained.get(name.replace(".lora_A.", ".lora_B."))
        if up is None or merged not in base:
            raise InputError(f"{where} do not fit: {name} has no {'other half' if up is None else 'weight to adapt'}")
        whole[merged] = _merged(base[merged], down, up)
    return whole


def _merged(base: StoredTensor, down: StoredTensor, up: StoredTensor) -> StoredTensor:
    def read() -> torch.Tensor:
        return (base.read().float() + up.read().float() @ down.read().float()).to(base.dtype)

    return StoredTensor(base.shape, base.dtype, read)


def convert_pipeline(pipeline: str, out: str | Path, dtype: torch.dtype | None = None) -> Converted:
    """A pipeline folder → the released file names and keys, for the released code.

    Args:
        pipeline: a folder that `FramePainterPipeline` loads, or a hub id.
        out: folder for the two files; must not exist, or be empty.
        dtype: of all weights; None keeps what each file has. The released ones are float16.

    Raises:
        InputError: the folder is no pipeline, has no matching attention, or is damaged.
    """
    folder = local_folder(pipeline, ["model_index.json", "unet/*", "control_encoder/*"])
    index = read_index(folder)
    config = read_json(folder / "unet" / "config.json")
    if config.get("attention") != "matching":
        raise InputError(f"{pipeline} has {config.get('attention')} attention, which the released files cannot hold")
    with torch.device("meta"):
        networks = {
            "unet": FramePainterUNet.from_config(config),
            "control_encoder": ControlEncoder.from_config(read_json(folder / "control_encoder" / "config.json")),
        }
    given = {part: open_part(folder, part) for part in RELEASED}
    check_weights(networks, given, pipeline)
    given["unet"] = {name.replace(_BRANCH, _RELEASED_BRANCH): tensor for name, tensor in given["unet"].items()}
    with _folder_beside(Path(out)) as partial:
        for part, name in RELEASED.items():
            write_tensors(partial / name, given[part], dtype)
    own = {"match_queries": config.get("match_queries"), **{k: index.get(k) for k in OFFICIAL if k in index}}
    differing = [f"{name} {value}" for name, value in own.items() if OFFICIAL[name] != value]
    notes = (f"note: the released code runs {OFFICIAL}; this was trained with {', '.join(differing)}",)
    return _converted(Path(out), given, notes if differing else ())


def _write_pipeline(
    out: Path,
    given: dict[str, Weights],
    model: str,
    variant: str | None,
    dtype: torch.dtype | None,
    size: Sequence[int],
    settings: dict[str, Any],
    where: str,
    idle: bool = False,
) -> Converted:
    """Checks all, then writes a pipeline folder at once; `idle` writes `idle_weights`, which do not train, as zeros."""
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
        given["unet"] = {name: StoredTensor(t.shape, t.dtype, t.clone) for name, t in zeros.items()} | given["unet"]
    frozen = {part: open_part(svd, part, variant) for part in ("vae", "image_encoder")}
    check_weights({part: networks[part] for part in given}, given, where)
    check_weights({part: networks[part] for part in frozen}, frozen, str(model))
    given = {**given, **frozen}
    with _folder_beside(out) as partial:
        write_index(partial, {**networks, "scheduler": scheduler}, {"size": list(size), **settings})
        card = model_card(out.name, pipeline_settings(editor.settings(), size), settings["signals"])
        (partial / "README.md").write_text(card)
        for part, stem in STEMS.items():
            network = networks[part]
            (partial / part).mkdir()
            if part == "image_encoder":
                network.config.save_pretrained(partial / part)
            else:
                network.save_config(partial / part)
            write_tensors(partial / part / f"{stem}.safetensors", given[part], dtype)
        scheduler.save_pretrained(partial / "scheduler")
    return _converted(out, given, ())


def _converted(out: Path, given: Mapping[str, Weights], notes: tuple[str, ...]) -> Converted:
    shapes = [tensor.shape for weights in given.values() for tensor in weights.values()]
    return Converted(out, len(shapes), sum(torch.Size(shape).numel() for shape in shapes), notes)


def _read_checkpoint(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"no checkpoint {path}; a run keeps its own in checkpoints/last.ckpt and best.ckpt")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise InputError(f"{path} cannot be read as a checkpoint, whole and of tensors only ({reason})") from error
    if not isinstance(state, dict) or not {"state_dict", "editor"} <= state.keys():
        raise InputError(f"{path} is no checkpoint of an editor; convert what `fit` wrote")
    return state


@contextmanager
def _folder_beside(out: Path) -> Iterator[Path]:
    """A new folder that takes the place of `out` when the block ends without an error."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists; choose another name, or remove it first")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.mkdir()
        yield partial
        if out.is_dir():
            out.rmdir()
        os.replace(partial, out)
    except OSError as error:
        raise InputError(f"{out} cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
