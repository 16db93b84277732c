"""The weights in the package: their size and their documented quality."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

from datamodules import SceneClipDataModule, SceneDataModule
from fp_lightning.inference.sampler import Sampling, sample
from fp_lightning.model.build import build_editor
from fp_lightning.model.svd.load import SHIPPED
from fp_lightning.training.autoencoder import COLOURS
from fp_lightning.types import EditBatch

SAMPLING = Sampling(num_inference_steps=6, guidance_scale=1.0)  # as in recipes/tiny.yaml


def psnr(images: torch.Tensor, truth: torch.Tensor, where: torch.Tensor | None = None) -> float:
    """Return the mean PSNR in dB of images [n, 3, h, w] in [-1, 1], over the pixels in the mask `where` [n, h, w]."""
    error = (images.clamp(-1, 1) - truth).square().mean(1)
    where = torch.ones_like(error) if where is None else where.float()
    return float((-10 * torch.log10((error * where).sum((1, 2)) / where.sum((1, 2)) / 4)).mean())


@pytest.mark.parametrize("name", SHIPPED)
def test_folders_are_small_and_of_half_precision(name):
    files = [path for path in SHIPPED[name].rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= {"tiny": 12e6, "tiny-editor": 16e6}[name]
    for path in (path for path in files if path.suffix == ".safetensors"):
        with safe_open(str(path), "pt") as file:
            assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16"}  # noqa: SIM118


@torch.no_grad()
def test_the_vae_gives_scenes_back_with_their_hues():
    vae = build_editor("tiny").prior.vae
    data = SceneClipDataModule(frames=(2,), frames_per_batch=32, objects=(1, 4), exposure=0.3, variety=0.5)
    frames = data.batch("val", 0).frames.flatten(0, 1)
    decoded = vae.decode(vae.encode(frames).latent_dist.mode(), num_frames=2).sample
    assert psnr(decoded, frames) > 25
    colours = torch.tensor(COLOURS)
    true, seen = (torch.einsum("kc, nchw -> knhw", colours, F.avg_pool2d(x, 4)).flatten(1) for x in (frames, decoded))
    assert (1 - (seen - true).square().mean(1) / true.var(1)).min() > 0.9


def test_the_editor_follows_the_sketch_of_an_unseen_scene():
    data = SceneDataModule(objects=(1, 1), motion=(0.2, 0.3), radius=(0.2, 0.25), detail=0.15)
    batch = EditBatch.cat([data.sample("test", count) for count in range(16)])
    editor = build_editor("tiny-editor", control_factor=1.0).eval()

    def lead(control: torch.Tensor) -> float:
        """Return the PSNR in moving pixels minus that of the unchanged photo, in dB."""
        generators = [torch.Generator().manual_seed(seed) for seed in range(len(batch))]
        images = sample(editor, replace(batch, control=control), SAMPLING, generators)
        return psnr(images, batch.target, moving) - psnr(batch.source, batch.target, moving)

    moving = batch.moving[:, 0]
    with_sketch, with_other_sketch = lead(batch.control), lead(batch.control.roll(1, 0))
    assert with_sketch > 2.0 and with_sketch > with_other_sketch + 0.7
