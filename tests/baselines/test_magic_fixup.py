"""Magic Fixup against tensors that the published code computes, its conversion, and what must hold for it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from baselines import released
from fp_lightning.baselines.example import Example
from fp_lightning.baselines.magic_fixup import fill_holes, load_magic_fixup
from fp_lightning.baselines.magic_fixup_weights import convert_magic_fixup, convert_parts, empty_networks
from fp_lightning.errors import InputError
from fp_lightning.weights.tensorfiles import StoredTensor, check_weights

SIZE = (64, 64)


@pytest.fixture(scope="module")
def reference():
    """Computed by Magic Fixup's code at 0607d9f from the files of `released`, with float32 and mean latents."""
    return load_file(Path(__file__).parent / "data" / "magic_fixup.safetensors")


@pytest.fixture
def example(reference):
    """Pixels of values that the published code does not change by cutting fractions off."""
    grey, draw = reference["grey"].numpy(), np.random.default_rng(0)
    photo, coarse = (grey[draw.integers(0, len(grey), (3, *SIZE))].astype(np.float32) / 255 for _ in range(2))
    alpha = np.ones((1, *SIZE), np.float32)
    alpha[:, 10:30, 20:50] = 0
    alpha[:, 40:44] = 0.25
    return Example("a", torch.from_numpy(photo) * 2 - 1, coarse=torch.from_numpy(np.concatenate([coarse, alpha])))


def difference(found, expected) -> float:
    return float((found - expected).norm() / expected.norm())


def run(method, example, monkeypatch):
    """Return the U-Net's input at the first step, the latents after each step, and the edited photo."""
    inputs, found = [], []
    step = method.scheduler.step

    def recorded(*given, **options):
        output = step(*given, **options)
        found.append(output.prev_sample)
        return output

    monkeypatch.setattr(method.scheduler, "step", recorded)
    hook = method.unet.register_forward_hook(lambda module, given, output: inputs.append(given[0]))
    torch.manual_seed(7)
    edited = method(example, torch.default_generator)
    hook.remove()
    return inputs[0], found, edited


def test_an_edit_is_the_published_one(magic_fixup, example, reference, monkeypatch):
    first, states, edited = run(load_magic_fixup(magic_fixup, steps=2), example, monkeypatch)
    assert difference(first[:, :4], reference["start"]) < 1e-4
    assert difference(first[:, 4:], reference["fixed"]) < 1e-4  # the coarse edit without holes, and its mask
    for number, x in enumerate(states):
        assert difference(x, reference[f"step.{number}"]) < 1e-4
    assert difference(edited, reference["edited"] * 2 - 1) < 1e-4


def test_noise_levels_are_those_of_the_file(tmp_path, example, reference, monkeypatch):
    file = released.magic_fixup_file(tmp_path / "plain.ckpt", rescaled=False)
    convert_magic_fixup(file, tmp_path / "out", accept_license=True)
    first, states, _ = run(load_magic_fixup(tmp_path / "out", steps=2), example, monkeypatch)
    assert difference(first[:, :4], reference["plain.start"]) < 1e-4 < difference(first[:, :4], reference["start"])
    for number, x in enumerate(states):
        assert difference(x, reference[f"plain.step.{number}"]) < 1e-4 < difference(x, reference[f"step.{number}"])


def test_the_photo_reaches_the_edit_through_its_tokens_alone(magic_fixup, example):
    method = load_magic_fixup(magic_fixup, steps=1)
    other = Example("b", example.photo.flip(-1), coarse=example.coarse)
    edits = [method(each, torch.Generator().manual_seed(0)) for each in (example, other)]
    assert difference(*edits) > 1e-3
    for name, tokens in method.bank.items():
        block = method.unet.get_submodule(name)
        block.attn2.set_processor(type("Off", (), {"__call__": lambda self, attn, x, **options: torch.zeros_like(x)})())
        assert tokens.shape[-1] == block.attn2.to_k.in_features
    assert len(method.bank) == 16
    assert torch.equal(*(method(each, torch.Generator().manual_seed(0)) for each in (example, other)))


def test_evaluations_are_counted_and_the_seed_decides(magic_fixup, example):
    method = load_magic_fixup(magic_fixup)
    seen = []
    for network in (method.unet, method.reference):
        network.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    edited = method(example, torch.Generator().manual_seed(0))
    assert sum(seen) == method.cost(example) == 100
    assert edited.shape == (3, *SIZE) and torch.isfinite(edited).all()
    short = load_magic_fixup(magic_fixup, steps=2)
    first, again, other = (short(example, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_holes_are_painted_over_from_around_them():
    coarse = torch.ones(4, 32, 32)
    coarse[:3, 10:20, 10:20] = 0
    coarse[3, 12:18, 12:18] = 0.4
    filled = fill_holes(coarse)
    assert (filled[:, 12:18, 12:18] > 0.9).all()  # black around the hole is within the pixels that are filled with it
    coarse[3] = 1
    assert torch.equal(fill_holes(coarse), coarse[:3] * 2 - 1)


# Conversion


def test_the_licence_is_asked_for(magic_fixup_file, tmp_path):
    with pytest.raises(InputError, match="Adobe Research License.*pass --accept-license"):
        convert_magic_fixup(magic_fixup_file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("gone", "more", "match"),
    [
        ("model.diffusion_model.out.2.bias", "", "1 missing in unet .first: conv_out.bias"),
        ("model.reference_model.time_embed.0.weight", "", "missing in reference_unet .first: time_embedding.linear_1"),
        (
            "first_stage_model.encoder.mid.attn_1.q.weight",
            "",
            "missing in vae .first: encoder.mid_block",
        ),
        ("alphas_cumprod", "", "has no alphas_cumprod of Stable Diffusion 1.x"),
        ("", "model.diffusion_model.extra.weight", "1 unexpected in unet .first: extra.weight"),
        ("", "first_stage_model.loss.weight", "1 unexpected in vae .first: loss.weight"),
        ("", "model_ema.decay", "1 unknown tensors .first: model_ema.decay"),
    ],
)
def test_other_names_are_one_line(magic_fixup_file, tmp_path, gone, more, match):
    tensors = torch.load(magic_fixup_file)
    tensors.pop(gone, None)
    torch.save(tensors | ({more: torch.zeros(2)} if more else {}), tmp_path / "file.ckpt")
    with pytest.raises(InputError, match=match):
        convert_magic_fixup(tmp_path / "file.ckpt", tmp_path / "out", accept_license=True)
    assert not (tmp_path / "out").exists()


def test_code_in_the_file_does_not_run(tmp_path):
    class Bad:
        def __reduce__(self):
            return print, ("ran",)

    torch.save({"model": Bad()}, tmp_path / "bad.ckpt")
    with pytest.raises(InputError, match="cannot be read as a checkpoint.*download it again"):
        convert_magic_fixup(tmp_path / "bad.ckpt", tmp_path / "out", accept_license=True)


def test_a_missing_part_and_another_model_are_one_line(magic_fixup, sd_folder, inpainting, tmp_path):
    for part in ("unet", "reference_unet", "vae", "scheduler"):
        folder = shutil.copytree(magic_fixup, tmp_path / part)
        shutil.rmtree(folder / part)
        with pytest.raises(InputError, match=f"{part}.*convert the released file"):
            load_magic_fixup(folder)
    with pytest.raises(InputError, match="4 input channels, but 9 are needed; convert the released file"):
        load_magic_fixup(sd_folder)
    with pytest.raises(InputError, match="reference_unet.*convert the released file"):
        load_magic_fixup(inpainting)
    with pytest.raises(InputError, match="--steps must be 1 to 250, got 251; try 50"):
        load_magic_fixup(magic_fixup, steps=251)


def test_names_and_shapes_of_the_full_size_fit():
    """Stable Diffusion 1.4 without any numbers; the names are all of the published model's, but for DINOv2."""
    shapes = released.magic_fixup_shapes(320, 768, 128)
    assert len(shapes) == 2183
    stored = {name: StoredTensor(shape, torch.float32, torch.Tensor) for name, shape in shapes.items()}
    weights = convert_parts(stored)
    networks = empty_networks(weights)
    check_weights(networks, weights, "the file")
    assert networks["unet"].config.cross_attention_dim == (320, 640, 1280, 1280)
    assert sum(value.numel() for value in networks["vae"].state_dict().values()) == 83_653_863
