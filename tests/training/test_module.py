"""The LightningModule under a real Trainer: resume, checkpoints, EMA, determinism."""

import lightning as L
import pytest
import torch
from conftest import make_editor, saving_trainer

from callbacks import TrainableEMA
from datamodules import SceneDataModule
from fp_lightning.errors import InputError
from fp_lightning.inference.sampler import Sampling
from fp_lightning.model.edm import seeded_generator
from fp_lightning.training.module import FramePainterModule


def make_module(**options) -> FramePainterModule:
    return FramePainterModule(
        make_editor(**options), learning_rate=1e-3, warmup=2, sampling=Sampling(1, guidance_scale=1.0)
    )


def data(workers: int = 0) -> SceneDataModule:
    return SceneDataModule(size=(32, 32), batch_size=2, num_workers=workers, train_samples=8, val_samples=2)


def fit(folder, steps: int, resume=None, module=None, decay: float = 0.5):
    """Fit with a checkpoint at each step, 4 steps per epoch; return module, EMA, and path of the last checkpoint."""
    module = module or make_module()
    ema = TrainableEMA(decay)
    trainer = saving_trainer(folder, steps, ema)
    trainer.fit(module, data(), ckpt_path=resume)
    return module, ema, folder / f"step={steps}.ckpt"


@pytest.fixture(scope="module")
def one_step(tmp_path_factory):
    """The module, average and checkpoint of a run of one step; not to be changed."""
    return fit(tmp_path_factory.mktemp("one_step"), 1, decay=0.999)


@pytest.fixture(scope="module")
def six_steps(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("six_steps"), 6)


@pytest.mark.parametrize("interrupted_at", [3, 4])  # within an epoch, and at its end
def test_resume_equals_no_interruption(six_steps, tmp_path, interrupted_at):
    whole, whole_ema, _ = six_steps
    _, _, checkpoint = fit(tmp_path / "first", interrupted_at)
    resumed, ema, _ = fit(tmp_path / "second", 6, resume=checkpoint)
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name
    for name, average in whole_ema.average.items():
        assert torch.equal(average, ema.average[name]), name


def test_checkpoint_carries_the_trainable_weights_and_no_others(one_step):
    module, _, path = one_step
    stored = torch.load(path, weights_only=True)["state_dict"]
    assert stored.keys() == module.trainable_names()
    assert not any(".vae." in name or ".image_encoder." in name for name in stored)


def test_the_trained_size_is_that_of_the_checkpoint_or_of_the_saved_editor(one_step):
    loaded, (_, _, path) = make_module(), one_step
    loaded.editor.trained, loaded.editor.model = False, "tiny-editor"
    assert loaded.trained_size is None
    loaded.editor.trained = True
    assert loaded.trained_size == (64, 64)
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["origin"]["size"] == list(data().size)
    checkpoint["origin"]["size"] = [32, 96]
    loaded.on_load_checkpoint(checkpoint)
    assert loaded.trained_size == (32, 96)


def test_checkpoint_of_a_different_architecture_lists_the_differences(one_step, tmp_path):
    _, _, path = one_step
    other = make_module(attention="temporal")
    with pytest.raises(InputError, match=r"different architecture: 35 unexpected \(first: .*processor.*\)") as error:
        fit(tmp_path, 2, resume=path, module=other)
    assert "\n" not in str(error.value)


def test_checkpoint_of_other_shapes_is_refused(one_step):
    module, (_, _, path) = make_module(), one_step
    module.editor.prior.unet.conv_in = torch.nn.Conv2d(8, 8, 3)
    with pytest.raises(InputError, match=r"of different shape \(first: editor.prior.unet.conv_in.bias"):
        module.on_load_checkpoint(torch.load(path, weights_only=True))


def test_average_follows_its_definition(one_step):
    module, ema, _ = one_step
    start = dict(make_module().named_parameters())
    decay = 2 / 11  # (1 + n) / (10 + n) after the first step
    for name, weight in module.named_parameters():
        if weight.requires_grad:
            torch.testing.assert_close(ema.average[name], start[name] * decay + weight * (1 - decay))


def test_average_holds_no_frozen_weights(one_step):
    module, ema, _ = one_step
    assert ema.average.keys() == module.trainable_names()


def test_validation_uses_the_average_and_restores_the_weights(tmp_path):
    module, ema, _ = fit(tmp_path, 2)
    before = {name: p.clone() for name, p in module.named_parameters()}
    seen = {}

    class Spy(L.Callback):
        def on_validation_epoch_start(self, trainer, pl_module):
            seen.update({name: p.clone() for name, p in pl_module.named_parameters()})

    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[ema, Spy()])
    trainer.validate(module, data(), verbose=False)
    name = next(iter(ema.average))
    assert torch.equal(seen[name], ema.average[name]) and not torch.equal(seen[name], before[name])
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())


def test_validation_within_fit_edits_at_most_fit_edits_samples(tmp_path):
    module = FramePainterModule(make_editor(), sampling=Sampling(1, guidance_scale=1.0), fit_edits=2)
    scenes = SceneDataModule(size=(32, 32), batch_size=2, train_samples=2, val_samples=6)
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "default_root_dir": tmp_path}
    L.Trainer(max_steps=1, num_sanity_val_steps=0, enable_checkpointing=False, **options).fit(module, scenes)
    assert len(module.edit_metrics.per_sample()) == 2
    L.Trainer(**options).validate(module, scenes, verbose=False)
    assert len(module.edit_metrics.per_sample()) == 6


def test_generators_depend_on_every_part():
    draws = {torch.rand(1, generator=seeded_generator(*parts)).item() for parts in ((0, "a"), (0, "b"), (1, "a"))}
    assert len(draws) == 3
    assert torch.rand(1, generator=seeded_generator(0, "a")).item() in draws


def test_cosine_without_a_last_step_is_refused():
    module = FramePainterModule(make_editor(), schedule="cosine")
    trainer = L.Trainer(max_epochs=-1, accelerator="cpu", logger=False, enable_progress_bar=False)
    with pytest.raises(InputError, match=r"set trainer.max_steps"):
        trainer.fit(module, data())


def test_size_that_does_not_fit_the_network_is_refused_before_training():
    trainer = L.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_progress_bar=False)
    with pytest.raises(InputError, match="height must be a multiple of 8, got 36; try 32 or 40"):
        trainer.fit(make_module(), SceneDataModule(size=(36, 32), batch_size=2))


def test_checkpoint_of_other_settings_names_them(one_step):
    _, _, path = one_step
    with pytest.raises(InputError, match=r"trained with control_factor 0\.2 \(now 0\.9\)"):
        make_module(control_factor=0.9).on_load_checkpoint(torch.load(path, weights_only=True))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_before_the_fused_step(tmp_path, precision):
    """Lightning refuses this for every mixed precision, but only scaled gradients rule it out."""
    module, norms = make_module(), []
    module.on_before_zero_grad = lambda optimizer: norms.append(
        torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
    )
    trainer = L.Trainer(
        default_root_dir=tmp_path, max_steps=2, accelerator="cpu", logger=False, limit_val_batches=0,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        precision=precision, gradient_clip_val=1e-3,
    )  # fmt: skip
    trainer.fit(module, data())
    assert module.optimizers().defaults["fused"]
    assert max(norm.item() for norm in norms) == pytest.approx(1e-3, rel=1e-2)


def quiet_trainer(folder) -> L.Trainer:
    return L.Trainer(default_root_dir=folder, accelerator="cpu", logger=False, enable_progress_bar=False)


def test_scores_of_pairs_that_may_have_been_trained_on_are_warned_of(one_step, tmp_path, caplog):
    _, _, path = one_step
    other = SceneDataModule(size=(32, 32), batch_size=2, train_samples=8, val_samples=2, seed=1)
    for scenes, warned in ((data(), False), (other, True)):
        quiet_trainer(tmp_path).validate(make_module(), scenes, ckpt_path=path, verbose=False, weights_only=True)
        assert ("trained with data.seed 0, now 1: pairs may be scored that were trained on" in caplog.text) == warned
    assert "no trained weights" not in caplog.text


def test_scores_of_untrained_weights_are_warned_of(tmp_path, caplog):
    quiet_trainer(tmp_path).validate(make_module(), data(), verbose=False)
    assert "no trained weights are loaded" in caplog.text


def test_another_folder_of_frozen_weights_at_resume_is_warned_of(one_step, tmp_path, caplog):
    _, _, path = one_step
    module = make_module(model="elsewhere")
    fit(tmp_path, 1, resume=path, module=module)
    assert "of elsewhere only the weights that do not train are used" in caplog.text


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_resumed_run_uses_its_own_settings(one_step, tmp_path, schedule):
    _, _, path = one_step
    module = make_module()
    module.learning_rate, module.betas, module.weight_decay, module.schedule = 0.5, (0.1, 0.2), 0.3, schedule
    seen = []
    module.on_before_zero_grad = lambda optimizer: seen.append(dict(optimizer.param_groups[0]))
    fit(tmp_path, 2, resume=path, module=module)
    rate = 0.5 * 2 / 3  # the second of two steps of warm-up; no decay before its end
    assert seen[-1]["lr"] == pytest.approx(rate) and seen[-1]["initial_lr"] == 0.5
    assert seen[-1]["betas"] == (0.1, 0.2) and seen[-1]["weight_decay"] == 0.3
