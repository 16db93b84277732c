"""Training of a prior: conditioning, loss, the saved network, and resuming."""

import shutil

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_editor
from diffusers import UNetSpatioTemporalConditionModel
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file

from datamodules import SceneClipDataModule
from fp_lightning.errors import InputError
from fp_lightning.model.edm import seeded_generators
from fp_lightning.model.svd.load import load_backbone
from fp_lightning.scenes.textures import texture
from fp_lightning.training.prior import VideoPriorModule, measure_motion, plain_unet
from fp_lightning.types import ClipBatch, EditBatch


def clips(frames: int = 2, workers: int = 0) -> SceneClipDataModule:
    return SceneClipDataModule(
        size=(32, 32),
        frames=(frames,),
        frames_per_batch=2 * frames,
        num_workers=workers,
        train_batches=4,
        val_batches=1,
    )


def make_prior(**options) -> VideoPriorModule:
    defaults = {"learning_rate": 1e-3, "warmup": 0, "schedule": "constant", "num_inference_steps": 1, "generated": 1}
    return VideoPriorModule(make_editor("temporal"), **defaults | options)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def loss(prior: VideoPriorModule, batch: ClipBatch, seed: int = 0) -> torch.Tensor:
    return prior.loss(batch, seeded_generators(batch.name, seed))


@pytest.fixture(scope="module")
def prior() -> VideoPriorModule:
    return make_prior()


@pytest.fixture(scope="module")
def batches() -> dict[int, ClipBatch]:
    return {frames: clips(frames).batch("train", 0) for frames in (2, 4)}


# --- loss and conditioning


@pytest.mark.parametrize("frames", [2, 4])
def test_loss_is_finite_and_repeats_with_the_generator(prior, batches, frames):
    first, again, other = (loss(prior, batches[frames], seed) for seed in (1, 1, 2))
    assert torch.isfinite(first)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_every_weight_that_trains_gets_a_gradient(batches):
    prior = make_prior()
    loss(prior, batches[2]).backward()
    assert [name for name, p in prior.named_parameters() if p.requires_grad and p.grad is None] == []


def test_nothing_but_the_unet_trains(prior):
    assert all(name.startswith("editor.prior.unet.") for name, p in prior.named_parameters() if p.requires_grad)


@pytest.mark.parametrize(("frames", "fps"), [(2, 7 - 1), (4, 21 - 1)])
def test_a_clip_has_seven_frames_per_second_for_each_frame_after_the_first(prior, batches, frames, fps):
    batch, level = batches[frames], torch.tensor([0.01, 0.03])
    noise = torch.zeros(2, 3, 32, 32)
    ids = prior.condition(batch.frames[:, 0], torch.tensor([0.1, 0.9]), frames, noise, level).added_time_ids
    assert ids.tolist() == [pytest.approx([fps, 51.2, 0.01]), pytest.approx([fps, 255, 0.03])]


def test_two_frames_have_the_conditioning_of_editors(prior, batches):
    frame = batches[2].frames[:, 0]
    noise, level = torch.zeros_like(frame), torch.full((2,), 0.02)
    clip = prior.condition(frame, torch.tensor([0.25, 0.25]), 2, noise, level)
    edit = EditBatch(source=frame, name=batches[2].name, control=torch.zeros_like(frame))
    edit_condition = prior.editor.condition(edit, noise, level)
    torch.testing.assert_close(clip.added_time_ids, edit_condition.added_time_ids)
    torch.testing.assert_close(clip.embedding, edit_condition.embedding)
    torch.testing.assert_close(clip.image_latents, edit_condition.image_latents)


def test_noise_augmentation_follows_the_noise_level(prior, batches):
    first = batches[2].frames[:, 0]
    noise = torch.randn(first.shape, generator=generator())
    level = torch.tensor([0.0, 0.5])
    latents = prior.condition(first, batches[2].motion, 2, noise, level).image_latents
    clean = prior.condition(first, batches[2].motion, 2, noise, torch.zeros(2)).image_latents
    assert torch.equal(latents[0], clean[0]) and not torch.equal(latents[1], clean[1])


@pytest.mark.parametrize("frames", [2, 3])
def test_generated_clips_have_the_requested_frames_in_range_and_repeat(prior, batches, frames):
    first = batches[2].frames[:, 0]
    clip, again = (prior.generate(first, batches[2].motion, frames, generator(3)) for _ in range(2))
    assert clip.shape == (2, frames, 3, 32, 32)
    assert clip.abs().max() <= 1
    assert torch.equal(clip, again)


@pytest.mark.parametrize("attention", ["matching", "cross_frame"])
def test_other_attention_than_temporal_is_refused(attention):
    with pytest.raises(InputError, match=f"a prior needs attention temporal, got {attention}; set it to temporal"):
        VideoPriorModule(make_editor(attention))


# --- the saved network


@torch.no_grad()
@pytest.mark.parametrize("frames", [2, 3])
def test_the_plain_network_computes_the_same(prior, frames):
    trained, plain = prior.editor.prior.unet, plain_unet(prior.editor.prior.unet).eval()
    assert type(plain) is UNetSpatioTemporalConditionModel
    args = torch.randn(2, frames, 32, 8, 8), torch.rand(2), torch.randn(2, 1, 32), torch.rand(2, 3)
    torch.testing.assert_close(trained(*args)[0], plain(*args, return_dict=False)[0], rtol=1e-4, atol=1e-5)


def test_the_plain_network_is_a_copy(prior):
    plain, weight = plain_unet(prior.editor.prior.unet), prior.editor.prior.unet.conv_in.weight
    with torch.no_grad():
        plain.conv_in.weight.add_(1)
    assert not torch.equal(plain.conv_in.weight, weight)
    assert "attention" not in plain.config


# --- measured motion


def test_the_measured_motion_of_a_shifted_image_is_in_px_at_512():
    image = torch.from_numpy(texture(np.random.default_rng(0), 64)).permute(2, 0, 1) * 2 - 1
    smooth = F.avg_pool2d(image[None], 3, 1, 1)[0]
    still, shifted = torch.stack([smooth, smooth]), torch.stack([smooth, smooth.roll(4, -1)])
    rest, moved = measure_motion(torch.stack([still, shifted])).tolist()
    assert rest == pytest.approx(0, abs=2)
    assert moved == pytest.approx(4 * 512 / 64, rel=0.25)


# --- under a trainer


def fit(folder, steps: int, prior: VideoPriorModule, resume=None, workers: int = 0, **options):
    """Fit with four batches per epoch; return the sample names of the batches in order, and the metrics."""
    seen: list[list[str]] = []

    class Spy(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(batch.name)

    trainer = L.Trainer(
        default_root_dir=folder, max_steps=steps, accelerator="cpu", devices=1, logger=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        callbacks=[Spy(), ModelCheckpoint(folder, filename="last", every_n_train_steps=steps)],
        **options,
    )  # fmt: skip
    trainer.fit(prior, clips(workers=workers), ckpt_path=resume)
    return seen, trainer.callback_metrics


@pytest.mark.filterwarnings("ignore")
def test_a_fit_leaves_a_network_in_half_precision_that_loads(tmp_path, tiny_folder):
    prior = make_prior(out=str(tmp_path / "unet"))
    _, metrics = fit(tmp_path, 2, prior, val_check_interval=2)
    assert {"val/total", "val/2_frames/motion", "val/2_frames/first_frame_psnr"} <= metrics.keys()
    stored = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    model = shutil.copytree(tiny_folder, tmp_path / "model", ignore=shutil.ignore_patterns("unet"))
    shutil.copytree(tmp_path / "unet", model / "unet")
    loaded = load_backbone(str(model), attention="matching").unet.state_dict()
    for name, value in prior.editor.prior.unet.state_dict().items():
        assert torch.equal(loaded[name], value.half().float()), name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("interrupted_at", "workers"), [(3, 1), (4, 0)])  # within an epoch, and at its end
def test_resume_continues_at_the_next_batch_with_the_same_noise(tmp_path, interrupted_at, workers):
    whole, first, second = (make_prior() for _ in range(3))
    names, _ = fit(tmp_path / "whole", 5, whole, limit_val_batches=0)
    fit(tmp_path / "first", interrupted_at, first, limit_val_batches=0, workers=workers)
    rest, _ = fit(
        tmp_path / "second", 5, second, tmp_path / "first" / "last.ckpt", limit_val_batches=0, workers=workers
    )
    assert rest == names[interrupted_at:]
    for (name, a), b in zip(whole.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b), name
