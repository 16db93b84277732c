"""VAE training: its losses and the saved network."""

import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder
from lightning import Trainer

from datamodules import SceneClipDataModule
from fp_lightning.model.tiny import tiny_vae
from fp_lightning.training.autoencoder import COLOURS, AutoencoderModule


@pytest.fixture
def module(tmp_path):
    torch.manual_seed(0)
    return AutoencoderModule(tiny_vae(), warmup=1, out=str(tmp_path / "vae"))


def clips(**options) -> SceneClipDataModule:
    content = {"objects": (1, 4), "exposure": 0.3, "variety": 0.5}
    defaults = {"size": (32, 32), "frames": (2,), "frames_per_batch": 8, "num_workers": 0, "val_batches": 1}
    return SceneClipDataModule(**defaults | content | options)


def test_lightness_and_hue_add_up_to_the_squared_error(module):
    batch = clips().batch("train", 0)
    with torch.no_grad():
        _, light, hue = module._errors(batch, sampled=False)
        video = batch.frames.flatten(0, 1)
        decoded = module.vae.decode(module.vae.encode(video).latent_dist.mode(), num_frames=2).sample
    assert torch.allclose(light + hue, (decoded - video).square().flatten(1).mean(1), atol=1e-5)
    assert hue.min() > 0


def test_a_grey_image_has_no_hue_and_light_in_the_first_channel_alone():
    grey = torch.tensor(COLOURS) @ torch.full((3,), 0.5)
    assert grey[0] > 1 and grey[1:].abs().max() < 1e-6
    yellow, red = (torch.tensor(COLOURS) @ torch.tensor(colour) for colour in ((1.0, 1.0, -1.0), (1.0, -1.0, -1.0)))
    assert yellow[2] > 0 and yellow[1] == 0 and red[1] > 0


def test_training_leads_the_first_channels_to_mean_colours(module, tmp_path):
    module.learning_rate, module.warmup, module.colour_weight = 3e-3, 5, 1.0
    trainer = Trainer(
        accelerator="cpu", max_steps=40, val_check_interval=40, check_val_every_n_epoch=None, num_sanity_val_steps=0,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, default_root_dir=tmp_path,
    )  # fmt: skip
    frames = clips().batch("val", 0).frames.flatten(0, 1)
    means = torch.nn.functional.avg_pool2d(frames, 4)
    target = torch.einsum("kc, nchw -> nkhw", torch.tensor(COLOURS), means)

    def unexplained(vae: AutoencoderKLTemporalDecoder) -> float:
        with torch.no_grad():
            found = vae.encode(frames).latent_dist.mode()[:, :3]
        return float((found - target).square().mean() / target.var())

    before = unexplained(module.vae.eval())
    trainer.fit(module, datamodule=clips())
    written = AutoencoderKLTemporalDecoder.from_pretrained(tmp_path / "vae", torch_dtype=torch.float32).eval()
    assert unexplained(written) < 0.7 < 0.9 < before
    with torch.no_grad():
        spread = float(written.encode(frames).latent_dist.mode().std())
    assert written.config.scaling_factor == pytest.approx(1 / spread, rel=0.1)
