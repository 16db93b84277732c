"""`build_editor`, which recipes name as `class_path`."""

from __future__ import annotations

import logging
from typing import Literal

import torch

from fp_lightning.errors import InputError
from fp_lightning.model.control import INJECTION_FACTOR
from fp_lightning.model.editor import OFFICIAL, FramePainter
from fp_lightning.model.matching import AttentionKind, MatchQueries
from fp_lightning.model.matching_loss import MatchingForm
from fp_lightning.model.svd.load import SVD, load_backbone, saved_settings
from fp_lightning.model.trainable import Trains, choose_trainable

logger = logging.getLogger(__name__)


def build_editor(
    model: str = SVD,
    weights: Literal["pretrained", "random"] = "pretrained",
    attention: AttentionKind = "matching",
    match_queries: MatchQueries = "target",
    variant: str | None = None,
    seed: int | None = None,
    gradient_checkpointing: bool = False,
    control_frames: Literal["target", "both"] = "target",
    control_factor: float = INJECTION_FACTOR,
    reconstruct_source: bool = True,
    matching_weight: float = 1.0,
    matching_loss: MatchingForm = "squared",
    sigma_mean: float = 0.7,
    sigma_std: float = 1.6,
    augmentation_mean: float = -3.0,
    augmentation_std: float = 0.5,
    augmentation_draws: int | None = None,
    dropout: float = 0.1,
    trains: Trains = "all",
    lora_rank: int = 16,
) -> FramePainter:
    """Build a `FramePainter` on SVD's parts. Recipes name this function as `class_path`.

    Args:
        model, weights, attention, match_queries, variant: see `load_backbone`.
        seed: seed of all weights that are not loaded; None for that of `--seed_everything` on the command line, and 0
            in Python.
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a third slower.
        trains, lora_rank: see `choose_trainable`.
        control_frames, control_factor, reconstruct_source, matching_weight, matching_loss, sigma_mean, sigma_std,
            augmentation_mean, augmentation_std, augmentation_draws, dropout: see `FramePainter`.

    Raises:
        InputError: `trains` leaves weights frozen that are random.
    """
    if trains != "all" and weights == "random":
        raise InputError(
            f"trains {trains} would leave random weights frozen; set weights to pretrained, or trains to all"
        )
    seed = seed or 0
    backbone = load_backbone(model, weights, attention, match_queries, variant, seed)
    saved = saved_settings(model) if weights == "pretrained" else None
    if saved is not None:
        chosen = {"match_queries": match_queries, "control_frames": control_frames, "control_factor": control_factor}
        changed = [f"{name} {saved[name]} (now {value})" for name, value in chosen.items() if saved[name] != value]
        if changed:
            logger.warning(
                "%s was saved with %s: its edits will differ%s",
                *(model, ", ".join(changed)),
                "; add --config official to keep that" if saved | OFFICIAL == saved else "",
            )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        choose_trainable(backbone.unet, backbone.control_encoder, trains, lora_rank)
    if gradient_checkpointing:
        backbone.unet.enable_gradient_checkpointing()
    return FramePainter(
        backbone.prior(),
        backbone.control_encoder,
        control_frames=control_frames,
        control_factor=control_factor,
        reconstruct_source=reconstruct_source,
        matching_weight=matching_weight,
        matching_loss=matching_loss,
        sigma_mean=sigma_mean,
        sigma_std=sigma_std,
        augmentation_mean=augmentation_mean,
        augmentation_std=augmentation_std,
        augmentation_draws=augmentation_draws,
        dropout=dropout,
        model=str(model),
        trained=saved is not None,
        trains=trains,
        distilled_steps=None if saved is None else saved["distilled_steps"],
    )
