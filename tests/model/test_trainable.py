"""Choices of trainable weights, their checkpoints, and LoRA adapters."""

import pytest
import torch
from conftest import losses_of, make_batch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.loaders import PeftAdapterMixin
from lightning import Callback, Trainer

from callbacks import TrainableEMA
from datamodules import SceneDataModule
from fp_lightning.errors import InputError
from fp_lightning.inference.pipeline import FramePainterPipeline
from fp_lightning.inference.sampler import Sampling
from fp_lightning.model.build import build_editor
from fp_lightning.model.editor import FramePainter
from fp_lightning.model.svd import specialise
from fp_lightning.model.trainable import BRANCH, counts, describe, is_temporal, store_frozen
from fp_lightning.training.module import FramePainterModule
from fp_lightning.training.prior import plain_unet
from fp_lightning.weights.convert import convert_checkpoint, convert_lora

CHOICES = ["all", "temporal", "matching+control", "lora"]


def trained_names(editor: FramePainter) -> set[str]:
    return {name for name, weight in editor.named_parameters() if weight.requires_grad}


def loss(editor: FramePainter) -> torch.Tensor:
    return losses_of(editor.train(), make_batch(2, 32)).total


@pytest.mark.parametrize("trains", CHOICES)
def test_what_trains_is_what_was_chosen_and_all_of_it_has_a_gradient(trains):
    editor = build_editor("tiny", trains=trains, lora_rank=2)
    names = trained_names(editor)
    always = {name for name in names if BRANCH in name or name.startswith("control_encoder.")}
    assert {name for name, _ in editor.control_encoder.named_parameters(prefix="control_encoder")} < always
    rest = names - always
    assert {
        "all": any(not is_temporal(name) for name in rest) and any(map(is_temporal, rest)),
        "temporal": bool(rest) and all(map(is_temporal, rest)),
        "matching+control": not rest,
        "lora": bool(rest) and all(".lora_" in name for name in rest),
    }[trains]
    loss(editor).backward()
    weights = dict(editor.named_parameters())
    assert all(weights[name].grad is not None for name in names)
    assert all(weight.grad is None for name, weight in weights.items() if name not in names)


def test_adapters_change_nothing_until_they_are_trained():
    plain, adapted = build_editor("tiny"), build_editor("tiny", trains="lora")
    assert torch.equal(loss(plain), loss(adapted))


@pytest.mark.parametrize("trains", CHOICES)
def test_what_is_frozen_can_be_stored_in_the_type_of_autocast(trains, monkeypatch):
    monkeypatch.setattr(specialise, "_FEWEST_UP", 1)  # the implementations for large images
    monkeypatch.setattr(specialise, "_FEWEST_MIXED", 1)
    steps, sizes = [], []
    for stored in (False, True):
        editor = build_editor("tiny", trains=trains)
        generator = torch.Generator().manual_seed(0)
        for weight in editor.parameters():  # adapters and the branch's output start at zero
            if weight.requires_grad:
                weight.data += 0.01 * torch.randn(weight.shape, generator=generator)
        if stored:
            store_frozen(editor, torch.bfloat16)
        sizes.append(sum(weight.nbytes for weight in editor.prior.unet.parameters()))
        with torch.autocast("cpu", torch.bfloat16):
            total = loss(editor)
        total.backward()
        steps.append([total, *(weight.grad for weight in editor.parameters() if weight.requires_grad)])
    assert all(map(torch.equal, *steps))
    assert sizes[1] < (0.99 if trains == "all" else 0.75) * sizes[0]


@pytest.mark.parametrize("trains", ["matching+control", "lora"])
def test_fit_stores_frozen_weights_in_16_bits_and_restores_them(trains, tmp_path):
    module = FramePainterModule(build_editor("tiny", trains=trains), sampling=Sampling(1))
    seen = set()

    class Watch(Callback):
        def on_validation_end(self, trainer, pl_module) -> None:
            weights = pl_module.editor.prior.unet.parameters()
            seen.update(p.dtype for p in weights if not p.requires_grad and p.ndim == 2)
            pl_module.attention_entropy(make_batch(1, 32))  # outside of Lightning's steps

    trainer = Trainer(
        accelerator="cpu", precision="bf16-mixed", max_steps=1, callbacks=[Watch()], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, SceneDataModule((32, 32), batch_size=2, train_samples=2, val_samples=2))
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_a_seed_decides_the_adapters():
    one, same, other = (build_editor("tiny", trains="lora", seed=seed).state_dict() for seed in (0, 0, 1))
    (name,) = [
        n for n in one if n.endswith("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.default.weight")
    ]
    assert torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name])


def test_the_counts_are_of_all_parameters():
    editor = build_editor("tiny", trains="lora", lora_rank=4)
    found = counts(editor)
    assert sum(total for _, total in found.values()) == sum(p.numel() for p in editor.parameters())
    assert sum(trained for trained, _ in found.values()) == sum(
        p.numel() for p in editor.parameters() if p.requires_grad
    )
    assert found["LoRA adapters"][0] == found["LoRA adapters"][1] > 0 == found["U-Net, spatial layers"][0]
    assert f"LoRA adapters ({found['LoRA adapters'][0]:,})" in describe(editor).split(";")[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trains": "some"}, "trains must be all, temporal, matching.control, lora, got 'some'"),
        ({"trains": "lora", "lora_rank": 0}, "lora_rank must be 1 or more, got 0"),
        ({"trains": "temporal", "weights": "random"}, "set weights to pretrained, or trains to all"),
    ],
)
def test_bad_choices_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        build_editor("tiny", **options)


def test_missing_peft_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(InputError, match=r"pip install 'fp_lightning\[lora\]'"):
        build_editor("tiny", trains="lora")


def fit(tmp_path, trains: str, attention: str = "matching") -> tuple[FramePainterModule, str]:
    """Train for two steps; return the module and the path of its checkpoint."""
    editor = build_editor("tiny", attention=attention, trains=trains, lora_rank=2)
    module = FramePainterModule(editor, learning_rate=1e-2)
    trainer = Trainer(
        accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        limit_val_batches=0, default_root_dir=tmp_path, callbacks=[TrainableEMA(0.5)],
    )  # fmt: skip
    trainer.fit(module, datamodule=SceneDataModule(size=(32, 32), batch_size=2, train_samples=8, val_samples=2))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    return module, str(tmp_path / "last.ckpt")


@pytest.mark.parametrize("trains", ["temporal", "matching+control", "lora"])
def test_a_checkpoint_of_fewer_weights_becomes_a_whole_pipeline(tmp_path, trains):
    before = build_editor("tiny").state_dict()
    module, checkpoint = fit(tmp_path, trains)
    kept = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert set(kept) == {f"editor.{name}" for name in trained_names(module.editor)}
    still = {name: weight for name, weight in module.editor.state_dict().items() if name in before}
    same = {name for name, weight in still.items() if torch.equal(weight, before[name])}
    assert same >= set(still) - trained_names(module.editor)

    convert_checkpoint(checkpoint, tmp_path / "pipe", "raw")
    pipe = FramePainterPipeline.from_pretrained(tmp_path / "pipe")
    with torch.no_grad():
        assert torch.allclose(loss(pipe.editor), loss(module.editor), rtol=1e-4)
        assert not torch.allclose(loss(build_editor("tiny")), loss(module.editor), rtol=1e-3)


def test_adapters_load_in_diffusers_and_give_the_same(tmp_path):
    """Load into diffusers' class of SVD's U-Net, with diffusers' mix-in for adapters."""
    module, checkpoint = fit(tmp_path, "lora", attention="temporal")
    written = convert_lora(checkpoint, tmp_path / "lora", "raw")
    assert "raw" in str(written) and written.tensors == sum(".lora_" in name for name in trained_names(module.editor))

    class Network(PeftAdapterMixin, UNetSpatioTemporalConditionModel):
        pass

    base = plain_unet(build_editor("tiny", attention="temporal").prior.unet)
    plain = Network.from_config(base.config)
    plain.load_state_dict(base.state_dict())
    generator = torch.Generator().manual_seed(0)
    sample, level = torch.randn(1, 2, 32, 8, 8, generator=generator), torch.tensor([0.3])
    rest = torch.randn(1, 1, 32, generator=generator), torch.tensor([[6.0, 128.0, 0.02]])
    with torch.no_grad():
        expected = module.editor.prior.unet.eval()(sample, level, *rest)[0]
        unadapted = plain.eval()(sample, level, *rest, return_dict=False)[0]
        plain.load_lora_adapter(tmp_path / "lora", prefix=None, use_safetensors=True)
        found = plain.eval()(sample, level, *rest, return_dict=False)[0]
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(unadapted, expected, rtol=1e-2, atol=1e-3)


def test_a_checkpoint_without_adapters_has_none_to_write(tmp_path):
    _, checkpoint = fit(tmp_path, "matching+control")
    with pytest.raises(InputError, match="has no LoRA adapters; train them with"):
        convert_lora(checkpoint, tmp_path / "lora")
    assert not (tmp_path / "lora").exists()
