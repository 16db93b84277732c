"""Steps on a pretended GPU: all tensors are where they must be, and a training step never waits for the GPU."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_batch, make_editor
from PIL import Image

from callbacks import LossGuard, TrainableEMA
from fp_lightning.inference.pipeline import FramePainterPipeline
from fp_lightning.inference.sampler import Sampling
from fp_lightning.media.edits import Edit
from fp_lightning.model import edm
from fp_lightning.model.devices import to_device
from fp_lightning.model.svd.prior import SVDPrior, svd_prior
from fp_lightning.model.trainable import choose_trainable, store_frozen
from fp_lightning.training.autoencoder import AutoencoderModule
from fp_lightning.training.module import FramePainterModule
from fp_lightning.training.optimiser import make_optimizer
from fp_lightning.training.prior import VideoPriorModule
from fp_lightning.types import ClipBatch, EditBatch
from gpu_paths.pretended import GPU, HostWaits

HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def autocast(precision):
    """The context in which Lightning runs a step on a GPU."""
    return torch.autocast("cuda", HALF.get(precision), enabled=precision in HALF, cache_enabled=False)


def module_on(gpu, editor, precision="32-true", **options):
    """A module as `fit` prepares it."""
    module = FramePainterModule(editor, sampling=Sampling(2), **options)
    module.log = module.log_dict = lambda *args, **kwargs: None
    with gpu.reading():
        module.to(GPU)
        if precision in HALF:
            store_frozen(module.editor, HALF[precision])
    return module.train()


def batch_on(gpu, batch):
    with gpu.reading():
        return batch.to(GPU)


def all_signals():
    """Four samples: sketch and points, one without sketch, one without points, one without visible tracks."""
    batch = make_batch(4, size=32, points=3)
    batch.control_valid = torch.tensor([True, False, True, True])
    batch.points_valid[2] = False
    batch.visible[3] = False
    return batch


def lora(editor):
    unet = svd_prior(editor.prior).unet
    choose_trainable(unet, editor.control_encoder, "lora", 4)
    unet.enable_gradient_checkpointing()
    return editor


def official(**options):
    return make_editor(match_queries="both", control_frames="both", control_factor=0.2, **options)


STEPS = {
    "bf16, all signals": (make_editor, "bf16-mixed"),
    "fp16, released settings": (lambda: official(matching_loss="cross_entropy", augmentation_draws=2), "16-mixed"),
    "float32, cross-frame attention": (lambda: make_editor("cross_frame", reconstruct_source=False), "32-true"),
    "bf16, LoRA, checkpointing": (lambda: lora(make_editor()), "bf16-mixed"),
}


@pytest.mark.parametrize("case", STEPS)
def test_a_training_step_does_not_wait(gpu, case):
    make, precision = STEPS[case]
    module, batch = module_on(gpu, make(), precision), batch_on(gpu, all_signals())
    with autocast(precision):
        loss = module.training_step(batch, 0)
    assert loss.device == GPU and loss.dtype == torch.float32 and loss.requires_grad


def test_a_training_step_with_cached_latents_and_without_a_drawing_does_not_wait(gpu):
    module = module_on(gpu, make_editor(augmentation_draws=4), "bf16-mixed")
    batch = all_signals()
    batch.control, batch.control_valid = None, None
    batch = batch_on(gpu, batch)
    with gpu.reading(), autocast("bf16-mixed"):
        cached = module.editor.with_latents(batch)
    with autocast("bf16-mixed"):
        assert module.training_step(cached, 0).device == GPU


def test_the_end_of_a_training_step_does_not_wait(gpu, tmp_path):
    """The backward pass needs a real device, so gradients are made here."""
    module = module_on(gpu, make_editor())
    guard, average = LossGuard(tmp_path / "skipped.jsonl"), TrainableEMA()
    plugin = SimpleNamespace(scaler=None)
    trainer = SimpleNamespace(world_size=1, global_step=1, precision_plugin=plugin, is_global_zero=True)
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = make_optimizer("adamw", trained, lr=1e-5, betas=(0.9, 0.999), weight_decay=0.01)
    with gpu.reading():
        average.on_fit_start(trainer, module)
    for _ in range(2):
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        guard.on_train_batch_start(trainer, module, make_batch(1, 32), 0)
        guard.on_before_backward(trainer, module, torch.zeros((), device=GPU))
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        guard.on_before_optimizer_step(trainer, module, optimizer)
        optimizer.step()
        trainer.global_step += 1
        guard.on_train_batch_end(trainer, module)
        average.on_train_batch_end(trainer, module)
    assert all(value.device == GPU for value in average.average.values())


def clips(frames=3):
    return ClipBatch(torch.rand(2, frames, 3, 32, 32), torch.rand(2), ["a", "b"])


def test_training_steps_of_a_prior_and_of_a_vae_do_not_wait(gpu):
    prior = VideoPriorModule(make_editor("temporal"), num_inference_steps=1, generated=2)
    vae = AutoencoderModule(svd_prior(make_editor().prior).vae.requires_grad_(True))
    for module in (prior, vae):
        module.log = module.log_dict = lambda *args, **kwargs: None
        with gpu.reading():
            module.to(GPU)
        batch = batch_on(gpu, clips())
        with autocast("bf16-mixed"):
            assert module.train().training_step(batch, 0).device == GPU
            module._trainer = SimpleNamespace(is_global_zero=True)
            with gpu.reading():
                module.eval().validation_step(batch, 0)


def test_validation_scores_and_attention_run(gpu):
    precision = "bf16-mixed"
    module, batch = module_on(gpu, make_editor(), precision), batch_on(gpu, all_signals())
    module._trainer = SimpleNamespace(
        state=SimpleNamespace(fn="validate"),
        precision_plugin=SimpleNamespace(forward_context=lambda: autocast(precision)),
    )
    with gpu.reading(), torch.inference_mode(), autocast(precision):
        edited = module.eval().validation_step(batch, 0)["edited"]
        assert edited.device == GPU and edited.shape == (4, 3, 32, 32)
        assert "psnr" in module.edit_metrics.compute()
        layers = set(module.editor.prior.attentions())
        assert (
            set(module.attention_maps(batch, batch.points[..., 2:])) == set(module.attention_entropy(batch)) == layers
        )


def picture(width=40, height=30):
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8))


def test_prediction_runs_for_drawings_and_for_saved_edits(gpu):
    batch = make_batch(2, size=32)
    edit = Edit(picture(), sketch=picture(), points=[[4, 4, 9, 9]], settings={"num_inference_steps": 2})
    module = module_on(gpu, make_editor(), "bf16-mixed").eval()
    with gpu.reading(), torch.no_grad(), autocast("bf16-mixed"):
        plain = EditBatch(batch.source, batch.name, control=batch.control).to(GPU)
        assert module.predict_step(plain, 0).device == GPU
        plain.edit = [None, edit]
        drawn, reproduced = module.predict_step(plain, 0)
    assert drawn.shape == (3, 32, 32) and reproduced.shape == (3, 30, 40)


def pipeline_on(gpu, dtype, editor=None):
    pipe = FramePainterPipeline.from_editor(editor or make_editor(), (32, 32))
    pipe.set_progress_bar_config(disable=True)
    with gpu.reading():
        for part in (pipe.unet, pipe.control_encoder, pipe.vae, pipe.image_encoder):
            part.to(GPU, dtype)
    assert pipe.device == GPU
    return pipe


CALLS = {
    "sketch": {"sketch": picture()},
    "points, region": {"points": [[4, 4, 9, 9]], "region": picture().convert("L"), "output_type": "pt"},
    "all signals, keep_unedited": {
        "sketch": picture(),
        "coarse": picture(),
        "points": [[4, 4, 9, 9]],
        "keep_unedited": True,
        "solver": "heun",
    },
    "reuse, guidance interval": {"sketch": picture(), "reuse": 2, "solver": "dpmpp_2m", "guidance_interval": (1, 9)},
}


TYPES = [(case, torch.float16) for case in CALLS]
TYPES += [("all signals, keep_unedited", torch.bfloat16), ("sketch", torch.float32)]


@pytest.mark.parametrize(("case", "dtype"), TYPES)
def test_the_pipeline_edits(gpu, case, dtype):
    pipe = pipeline_on(gpu, dtype)
    with gpu.reading():
        (edited,) = pipe(picture(), num_inference_steps=2, **CALLS[case]).images
    assert edited.shape == (3, 30, 40) if case.startswith("points") else edited.size == (40, 30)


def test_the_pipeline_edits_a_list_with_a_sliced_vae_that_stays_in_float32(gpu):
    editor = make_editor()
    svd_prior(editor.prior).vae.register_to_config(force_upcast=True)  # as SVD's
    pipe, seen = pipeline_on(gpu, torch.float16, editor), []
    pipe.enable_vae_slicing()

    def callback(pipe, step, timestep, tensors):
        seen.extend(value.device for value in tensors.values())
        return {"latents": tensors["latents"] * 1}

    with gpu.reading():
        images = pipe(
            [picture(), picture(20, 20)],
            [picture(), None],
            points=[None, [[4, 4, 9, 9]]],
            num_inference_steps=2,
            callback_on_step_end=callback,
            callback_on_step_end_tensor_inputs=("latents", "denoised"),
        ).images
    assert [image.size for image in images] == [(40, 30), (20, 20)] and seen == [GPU] * 4
    assert pipe.vae.dtype == torch.float32 and pipe.unet.dtype == torch.float16


def test_launching_the_kernels_does_not_wait(gpu, monkeypatch):
    kernels = pytest.importorskip("fp_lightning.model.matching_triton", reason="Triton is not installed here")
    launched = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *args: launched.append([a.device for a in args if isinstance(a, torch.Tensor)])

    for name in ("_rows", "_query_gradient", "_key_gradient"):
        monkeypatch.setattr(kernels, name, Kernel())
    query, key = (torch.zeros(2, 3, 64, 64, device=GPU, dtype=torch.bfloat16) for _ in range(2))
    index = torch.zeros(2, 64, dtype=torch.long, device=GPU)
    found = kernels.rows(query, key, index, True)
    kernels.rows_backward(found[0], query, key, index, *found[1:], True)
    assert len(launched) == 3 and {device for each in launched for device in each} == {GPU}


# --- what these tests would catch


def test_a_tensor_on_the_wrong_device_is_caught(gpu, monkeypatch):
    def misplaced(self, augmentation):
        return torch.zeros(len(augmentation), 3)

    module, batch = module_on(gpu, make_editor()), batch_on(gpu, make_batch(1, size=32))
    monkeypatch.setattr(SVDPrior, "micro_conditioning", misplaced)
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device") as caught:
        module.training_step(batch, 0)
    print(caught.value)


def test_a_number_that_is_read_is_caught_with_its_line(gpu, monkeypatch):
    weight = edm.loss_weight

    def planted(sigma):
        return weight(sigma) / sigma.max().item()

    module, batch = module_on(gpu, make_editor()), batch_on(gpu, make_batch(1, size=32))
    monkeypatch.setattr(edm, "loss_weight", planted)
    with pytest.raises(HostWaits, match=r"item\(\) in tests/gpu_paths/test_devices.py:\d+: return weight") as caught:
        module.training_step(batch, 0)
    print(caught.value)


WAITS = {
    "item": lambda x: x.sum().item(),
    "if": lambda x: 1 if x.sum() > 0 else 0,
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.double().to("cpu"),
    "copy_": lambda x: torch.zeros(4).copy_(x),
    "mask": lambda x: x[x > 0],
    "masked_select": lambda x: x.masked_select(x > 0),
    "nonzero": lambda x: x.nonzero(),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "repeat_interleave": lambda x: x.repeat_interleave(x.long()),
    "index on the CPU": lambda x: x[torch.tensor([1, 2])],
    "pageable": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "new_tensor": lambda x: x.new_tensor([1.0, 2.0]),
    "to the GPU": lambda x: torch.zeros(4).to(x.device),
}


@pytest.mark.parametrize("kind", WAITS)
def test_every_kind_of_wait_is_caught(gpu, kind):
    x = torch.zeros(4, device=GPU)
    with pytest.raises(HostWaits):
        WAITS[kind](x)


def test_what_does_not_wait_is_not_caught(gpu):
    x = to_device(torch.zeros(4), GPU)
    x = (x * 2.0 + torch.tensor(1.0)).where(x > 0, 0)
    assert x[x.long()].repeat_interleave(2).device == GPU
