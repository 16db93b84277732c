"""MasaCtrl against tensors that the published code computes with a network whose weights are a formula."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors.torch import load_file

from fp_lightning.baselines.example import Example
from fp_lightning.baselines.masactrl import MasaCtrl
from fp_lightning.baselines.mutual import mutual_attention
from fp_lightning.baselines.stable_diffusion import StableDiffusion, late_blocks

from .networks import fill, pseudo_random


class Latents(StableDiffusion):
    """Stable Diffusion between given latents and text."""

    def encode(self, photo):
        return pseudo_random((1, 4, 8, 8), 1)

    def decode(self, latents):
        return latents

    def embed(self, text=""):
        return pseudo_random((1, 77, 16), 3)


@pytest.fixture(scope="module")
def reference():
    """Computed once by the code of MasaCtrl at d0ba16b: guidance 7.5, and "" as both prompts."""
    return load_file(Path(__file__).parent / "data" / "masactrl.safetensors")


@pytest.fixture(scope="module")
def latents(sd):
    parts = {field.name: getattr(sd, field.name) for field in fields(sd)}
    return Latents(**parts | {"unet": fill(UNet2DConditionModel.from_config(sd.unet.config))})


def difference(found, expected) -> float:
    return float((found - expected).norm() / expected.norm())


def test_mutual_attention_is_the_published_one(reference, latents):
    with mutual_attention(latents.unet):
        found = late_blocks(latents.unet)[0][1].attn1(pseudo_random((4, 6, 32), 9))
    assert difference(found, reference["attention"]) < 1e-4


def test_it_samples_as_published(reference, latents, sd_folder):
    """Inversion and four steps, from the second one on with mutual attention; without a ControlNet, as published."""
    control = ControlNetModel.from_pretrained(sd_folder, subfolder="scribble").double()
    example = Example("a", torch.zeros(3, 64, 64), sketch=torch.zeros(3, 64, 64))
    found, without = (
        MasaCtrl(latents, control, steps=4, first_step=first, control_scale=0.0)(example, torch.Generator())
        for first in (1, 4)
    )
    assert difference(found, reference["edited"]) < 1e-4
    assert difference(without, reference["edited"]) > 1e-2
