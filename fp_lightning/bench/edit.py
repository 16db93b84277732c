"""Benchmark the U-Net and a whole edit with specialised modules against diffusers' modules."""

from __future__ import annotations

import torch
from torch import Tensor

from fp_lightning.bench.measure import Result, compare
from fp_lightning.bench.networks import DEVICE, full_editor, full_unet
from fp_lightning.inference.sampler import Sampling, prepare, sample_latents
from fp_lightning.inference.solvers import euler
from fp_lightning.model.build import build_editor
from fp_lightning.model.condition import Condition
from fp_lightning.model.editor import FramePainter
from fp_lightning.model.svd.prior import svd_prior
from fp_lightning.model.svd.specialise import generalise, specialise
from fp_lightning.types import EditBatch

UNET_SIZES: list[tuple[int, int]] = [(40, 64), (72, 128)]  # latent height and width
FULL_SIZE = (64, 128)  # height and width in px of the edit by the full network
TYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32


@torch.no_grad()
def unet(rounds: int) -> list[Result]:
    """Time one unguided call of SVD's full U-Net with matching attention, against the same with diffusers' modules."""
    network = full_unet() if DEVICE == "cpu" else full_unet().to(TYPE)
    results = []
    for height, width in UNET_SIZES:
        g = torch.Generator().manual_seed(0)
        shapes = (1, 2, 8, height, width), (1,), (1, 1, 1024), (1, 3)
        inputs = [torch.randn(shape, generator=g).to(DEVICE, TYPE) for shape in shapes]

        def specialised(inputs=inputs) -> Tensor:
            return specialise(network)(*inputs)[0]

        def reference(inputs=inputs) -> Tensor:
            return generalise(network)(*inputs)[0]

        error = relative(specialised(), reference())
        result = compare(f"unet/{height}x{width}", specialised, reference, rounds, count=True)
        result.error, result.settings["error"] = error, "relative, of the output"
        result.settings |= {"parameters": sum(p.numel() for p in network.parameters()), "type": str(TYPE)[6:]}
        results.append(result)
    return results


def edit(rounds: int) -> list[Result]:
    """Time 25 guided steps and decoding, against a pipeline that computes all networks at every step."""
    tiny = build_editor("tiny", "random").eval().to(DEVICE)
    with torch.no_grad():
        for parameter in svd_prior(tiny.prior).unet.conv_out.parameters():
            parameter.normal_(std=0.05)
    return [
        _edit("edit/tiny", tiny, (64, 64), rounds),
        _edit("edit/full", full_editor() if DEVICE == "cpu" else full_editor().to(TYPE), FULL_SIZE, rounds),
    ]


@torch.no_grad()
def _edit(
    name: str, editor: FramePainter, size: tuple[int, int], rounds: int, settings: Sampling | None = None
) -> Result:
    g = torch.Generator().manual_seed(0)
    source, control = (torch.rand(1, 3, *size, generator=g).to(DEVICE) for _ in range(2))
    batch, settings = EditBatch(source * 2 - 1, ["noise"], control=control), settings or Sampling()

    prior = svd_prior(editor.prior)

    def ours() -> Tensor:
        specialise(prior.unet), specialise(prior.vae.decoder)
        return editor.decode(sample_latents(editor, batch, settings, [torch.Generator().manual_seed(1)]))

    def plain() -> Tensor:
        generalise(prior.unet), generalise(prior.vae.decoder)
        return editor.decode(plain_latents(editor, batch, settings, torch.Generator().manual_seed(1)))

    error = relative(ours(), plain())
    result = compare(name, ours, plain, rounds, count=True, steps=settings.num_inference_steps, size=list(size))
    result.error, result.settings["error"] = error, "relative, of the image"
    return result


def plain_latents(editor: FramePainter, batch: EditBatch, settings: Sampling, generator: torch.Generator) -> Tensor:
    """Sample with guidance as usual pipelines do: both halves at every step, the control encoder for both.

    Args:
        batch: one sample.

    Returns:
        Latents [1, 2, c, h, w].
    """
    condition, weights, sigmas, start = prepare(editor, batch, settings, [generator])
    both = Condition.cat(condition.unconditional(), condition)

    def denoise(x: Tensor, sigma: Tensor, step: int) -> Tensor:
        unconditional, conditional = editor.denoise(torch.cat([x, x]), sigma.expand(2), both)[0].chunk(2)
        return unconditional + weights[step] * (conditional - unconditional)

    return euler(denoise, start, sigmas)


def relative(ours: Tensor, reference: Tensor) -> float:
    """Return the largest absolute difference divided by the largest absolute value of the reference."""
    return ((ours - reference).abs().max() / reference.abs().max()).item()
