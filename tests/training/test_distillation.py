"""Consistency distillation: teacher, target, loss, exact resume, adapters, and settings that are refused."""

import copy

import lightning as L
import pytest
import torch
from conftest import make_batch, make_editor, saving_trainer

from datamodules import SceneDataModule
from fp_lightning.errors import InputError
from fp_lightning.inference.sampler import Sampling, prepare
from fp_lightning.model.build import build_editor
from fp_lightning.model.edm import seeded_generators
from fp_lightning.model.trainable import choose_trainable
from fp_lightning.training.distillation import DistillationModule
from fp_lightning.training.module import FramePainterModule

TEACHER = "tiny-editor"
ONE_STEP = Sampling(1, 1.0, solver="consistency")


def make_teacher(**options):
    """A small editor that says it is trained. Its name is that of one with the same settings."""
    return make_editor(model=TEACHER, trained=True, control_factor=1.0, **options)


def make_module(editor=None, **options) -> DistillationModule:
    defaults = {"learning_rate": 1e-3, "sampling": ONE_STEP}
    return DistillationModule(editor or make_teacher(), **defaults | options)


def fit(module: L.LightningModule, folder, steps: int, resume=None) -> L.LightningModule:
    trainer = saving_trainer(folder, steps)
    data = SceneDataModule(size=(32, 32), batch_size=2, train_samples=4, val_samples=2)
    trainer.fit(module, data, ckpt_path=resume)
    return module


@pytest.fixture(scope="module")
def four_steps(tmp_path_factory):
    """A module after four steps and the folder of its checkpoints; not to be changed."""
    folder = tmp_path_factory.mktemp("four")
    return fit(make_module(), folder, 4), folder


def trained_weights(module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}


def losses(module, batch, seed=0) -> torch.Tensor:
    return module.losses(batch, seeded_generators(batch.name, seed))["total"]


def test_the_teacher_stays_and_the_target_is_the_average_of_the_student(four_steps):
    module, folder = four_steps
    loaded, average = trained_weights(make_module()), trained_weights(make_module())
    for step in range(1, 5):
        after = torch.load(folder / f"step={step}.ckpt", weights_only=True)["state_dict"]
        average = {name: 0.95 * average[name] + 0.05 * after[name] for name in average}
    now = trained_weights(module)
    assert module.teacher.keys() == module.average.keys() == now.keys()
    assert all(torch.equal(weight, loaded[name]) for name, weight in module.teacher.items())
    assert sum(not torch.equal(weight, loaded[name]) for name, weight in now.items()) > len(now) / 2
    torch.testing.assert_close(module.average, average, rtol=1e-5, atol=1e-7)


def test_resume_equals_no_interruption(four_steps, tmp_path):
    whole, folder = four_steps
    resumed = fit(make_module(), tmp_path, 4, resume=folder / "step=3.ckpt")
    for ours, theirs in ((resumed.average, whole.average), (resumed.teacher, whole.teacher)):
        assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


@torch.no_grad()
def test_the_loss_is_that_of_the_definition():
    """Written out for one level: one guided Euler step of the teacher, then the pseudo-Huber distance."""
    module, batch = make_module(levels=2, steps=1), make_batch(1, size=32)
    module.editor.augmentation_mean, module.editor.augmentation_std = torch.tensor(0.02).log().item(), 0.0
    module.keep_teacher()
    for p in trained_weights(module).values():  # a student that is not its teacher
        p.mul_(1.01)
    student, teacher, seen = module.editor, make_teacher(), []
    forward = module.forward
    module.forward = lambda *inputs: seen.append(inputs) or forward(*inputs)
    loss = losses(module, batch)
    (both, _, _), (ahead, low, _), (x, high, condition) = seen
    assert torch.equal(both[:1], x) and high.item() == pytest.approx(40) and low.item() == pytest.approx(0.02)

    conditional = teacher.denoise(x, high, condition)[0]
    unconditional = teacher.denoise(x, high, condition.unconditional())[0]
    guided = unconditional + 3 * (conditional - unconditional)
    torch.testing.assert_close(ahead, x + (x - guided) / high * (low - high), rtol=1e-4, atol=1e-4)
    distance = student.denoise(x, high, condition)[0] - teacher.denoise(ahead, low, condition)[0]
    expected = ((distance**2 + 0.001**2).sqrt() - 0.001).mean() / (40 - 0.02) ** 0.1
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)


def test_the_loss_falls_and_one_call_learns_what_a_guided_step_does():
    """With two levels, the target is the end of one guided step of the teacher."""
    batch, module = make_batch(2, size=32), make_module(levels=2, steps=1)
    module.keep_teacher()
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=2e-3)
    before = losses(module, batch).item()
    for _ in range(25):
        optimizer.zero_grad()
        losses(module, batch).backward()
        optimizer.step()
    assert losses(module, batch).item() < 0.5 * before


def test_adapters_need_no_second_network_and_the_teacher_is_the_network_without_them():
    editor, batch = make_teacher(), make_batch(1, size=32)
    condition, _, sigmas, x = prepare(editor, batch, Sampling(1, 1.0), seeded_generators(batch.name, "edit"))
    with torch.no_grad():
        plain = editor.denoise(x, sigmas[:1], condition)[0]
    choose_trainable(editor.prior.unet, editor.control_encoder, "lora", 2)
    module = make_module(editor)
    module.keep_teacher()
    with torch.no_grad():
        for name, weight in trained_weights(module).items():
            if ".lora_B." in name:
                weight.normal_()
        adapted = module(x, sigmas[:1], condition)
        taught = torch.func.functional_call(module, module.teacher, (x, sigmas[:1], condition))
    assert torch.equal(taught, plain) and not torch.allclose(adapted, plain)
    kept, network = (sum(t.numel() for t in of) for of in (module.teacher.values(), editor.prior.unet.parameters()))
    assert kept == sum(p.numel() for p in editor.parameters() if p.requires_grad) < network / 3


def test_every_weight_that_trains_gets_a_gradient():
    module, batch = make_module(make_teacher().train()), make_batch(1, size=32)
    module.keep_teacher()
    losses(module, batch).backward()
    assert [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_sample_has_the_same_loss_in_any_batch():
    module, batch = make_module(), make_batch(2, size=32)
    module.keep_teacher()
    with torch.no_grad():
        alone = [losses(module, batch.one(index)) for index in range(2)]
        torch.testing.assert_close(losses(module, batch), torch.stack(alone).mean(), rtol=1e-4, atol=1e-6)


# --- what is refused, in one line


def refused(module: DistillationModule, tmp_path, resume=None) -> str:
    with pytest.raises(InputError) as error:
        fit(module, tmp_path, 1, resume)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_missing_teacher_is_refused(tmp_path):
    assert "needs a trained editor as its teacher, got tiny" in refused(
        make_module(make_editor(model="tiny")), tmp_path
    )


def test_a_teacher_of_another_architecture_is_refused(tmp_path):
    editor = make_editor("cross_frame", model=TEACHER, trained=True, control_factor=1.0)
    assert "tiny-editor was saved with attention matching (now cross_frame)" in refused(make_module(editor), tmp_path)
    with pytest.raises(InputError, match="tiny-editor is an editor with matching attention, got attention 'temporal'"):
        build_editor(TEACHER, attention="temporal")


def test_a_teacher_with_other_settings_is_refused(tmp_path):
    editor = make_editor(model=TEACHER, trained=True, control_factor=0.5)
    assert "was saved with control_factor 1.0 (now 0.5)" in refused(make_module(editor), tmp_path)


def test_a_distilled_teacher_is_refused(tmp_path):
    assert "distilled itself" in refused(make_module(make_teacher(distilled_steps=4)), tmp_path)


def test_a_sampling_of_validation_that_does_not_suit_is_refused_before_training(tmp_path):
    text = refused(make_module(sampling=Sampling(25)), tmp_path)
    assert text == (
        "this editor was distilled for 1 to 4 steps: solver must be consistency, got euler; guidance_scale must be 1, "
        "got 3; num_inference_steps must be at most 4, got 25"
    )


def test_a_checkpoint_that_is_no_distillations_or_has_another_teacher_is_refused(four_steps, tmp_path):
    plain = fit(FramePainterModule(make_teacher(), learning_rate=1e-3), tmp_path, 1)
    assert plain.editor.distilled_steps is None
    assert "not of a distillation" in refused(make_module(), tmp_path, tmp_path / "step=1.ckpt")
    state = torch.load(four_steps[1] / "step=1.ckpt", weights_only=True)
    state["origin"]["model"] = "another"
    torch.save(state, tmp_path / "other.ckpt")
    assert "distilled from another, not from tiny-editor" in refused(make_module(), tmp_path, tmp_path / "other.ckpt")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"decay": 1.0}, "decay must be in"), ({"steps": 0}, "got 0 and 100"), ({"levels": 4}, "got 4 and 4 levels")],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        make_module(**options)


def test_a_checkpoint_says_that_its_editor_is_distilled(four_steps):
    _, folder = four_steps
    module = FramePainterModule(make_teacher())
    module.on_load_checkpoint(copy.deepcopy(torch.load(folder / "step=1.ckpt", weights_only=True)))
    assert module.editor.distilled_steps == 4
