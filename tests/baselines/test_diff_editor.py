"""DiffEditor against tensors that the published code computes, and by what must hold for it."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from fp_lightning.baselines import diff_editor
from fp_lightning.baselines.diff_editor import DiffEditor, cells_of, paste, phase
from fp_lightning.baselines.example import Example
from fp_lightning.baselines.image_prompt import load_image_prompt
from fp_lightning.baselines.mutual import joined_tokens, kept_tokens
from fp_lightning.baselines.sde_drag import sigma
from fp_lightning.baselines.stable_diffusion import Ddim, transformer_blocks
from fp_lightning.errors import InputError

from .networks import fill, pseudo_random

HEIGHT, WIDTH = 64, 128
POINTS = torch.tensor([[20.0, 24, 51, 30], [50, 38, 54, 33]])
CONTEXT = pseudo_random((1, 77, 16), 3)
STEP, TIMESTEP = 12, 741  # a guided one with noise


@pytest.fixture(scope="module")
def reference():
    """Computed once by the code of DiffEditor at f9b5bdf in float64.

    Its network is the one below. Only `edited` and `tokens` are with an image prompt.
    """
    return load_file(Path(__file__).parent / "data" / "diff_editor.safetensors")


@pytest.fixture(scope="module")
def inverted(sd):
    """The method, its noise prediction, and the states and tokens of an inverted latent."""
    method = DiffEditor(replace(sd, unet=fill(UNet2DConditionModel.from_config(sd.unet.config))))
    predict = method.sd.predictor(CONTEXT)
    clean = pseudo_random((1, 4, HEIGHT // 8, WIDTH // 8), 1)
    with torch.no_grad():
        return method, predict, *method.invert(clean, predict)


@pytest.fixture(scope="module")
def region():
    region = torch.zeros(1, 1, HEIGHT, WIDTH, dtype=torch.bool)
    region[..., 8:48, 8:104] = True
    return region


def difference(found, expected) -> float:
    return float((found - expected).norm() / expected.norm())


def test_it_starts_as_published(reference, inverted):
    _, _, states, _ = inverted
    assert difference(states[-1], reference["inverted"]) < 1e-4
    start = paste(states[-1], cells_of(POINTS, (HEIGHT // 4, WIDTH // 4)) // 2)
    assert difference(start, reference["start"]) < 1e-4
    assert difference(start, states[-1]) > 1e-2


def test_its_energies_and_guidance_are_the_published_ones(reference, inverted, region):
    method, predict, states, _ = inverted
    features = method.features(predict, TIMESTEP)
    drags, x = cells_of(POINTS, (HEIGHT // 4, WIDTH // 4)), reference["x"].double()
    photo, now = features(states[-1 - STEP]), features(x)
    edit = method.edit_energy(now, photo, drags)
    content = method.content_energy(now, photo, ~region[0, 0, ::4, ::4])
    assert difference(torch.stack([edit, content]), reference["energies"]) < 1e-4
    guidance = method.guidance(x, features, photo, drags, region)
    assert difference(guidance, reference["guidance"]) < 1e-4


def test_it_takes_the_published_step(reference, inverted, region):
    """Tokens of the photo beside its own, the guided clean latent, and noise in the region."""
    method, predict, _, tokens = inverted
    ddim, x = Ddim(50), reference["x"].double()
    with torch.no_grad(), joined_tokens(method.sd.unet, tokens[TIMESTEP]):
        noise = predict(x, TIMESTEP)
    generator = torch.Generator().manual_seed(7)
    _, drawn = (torch.randn(x.shape, generator=generator) for _ in (11, STEP))  # one for each noisy step
    deviation = 0.4 * sigma(ddim, TIMESTEP) * region[..., ::8, ::8]
    found = diff_editor.step(ddim, x, noise, noise + reference["guidance"], TIMESTEP, deviation, drawn)
    assert difference(found, reference["next"]) < 1e-4


def test_it_samples_as_published(reference, inverted, region, adapter_folder):
    """All 50 steps. The image prompt is given as tokens; its encoder is not part of the method."""
    method, predict, states, tokens = inverted
    prompted = load_image_prompt(method.sd.unet, adapter_folder).predictor(CONTEXT, reference["tokens"].double())
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        found = method.sample(states, tokens, predict, POINTS, region, generator, prompted)
    assert difference(found, reference["edited"]) < 1e-4


@pytest.mark.parametrize("ending", [".bin", ".safetensors"])
def test_image_prompts_are_projected_as_published(reference, inverted, adapter_folder, tmp_path, ending):
    folder = shutil.copytree(adapter_folder, tmp_path / "adapter")
    if ending == ".safetensors":
        parts = torch.load(folder / "adapter.bin")
        tensors = {f"{part}.{name}": each for part, group in parts.items() for name, each in group.items()}
        save_file(tensors, folder / "adapter.safetensors")
        (folder / "adapter.bin").unlink()
    prompt = load_image_prompt(inverted[0].sd.unet, folder)
    assert difference(prompt.projection(pseudo_random((2, 9, 24), 5)), reference["tokens"]) < 1e-4


@pytest.fixture
def photo():
    return torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("prompted", [False, True])
def test_it_counts_its_evaluations(sd, photo, region, adapter_folder, prompted):
    prompt = load_image_prompt(sd.unet, adapter_folder) if prompted else None
    method = DiffEditor(sd, steps=20, image_prompt=prompt)
    example = Example("a", photo, region[0, :, :, :64], POINTS)
    seen, with_gradients = [], []

    def count(module, inputs, output):
        (with_gradients if output.sample.requires_grad else seen).append(len(inputs[0]))

    hook = sd.unet.register_forward_hook(count)
    edited = method(example, torch.Generator().manual_seed(0))
    hook.remove()
    assert sum(seen) + sum(with_gradients) == method.cost(example) and sum(with_gradients) == 10
    assert edited.shape == photo.shape and torch.isfinite(edited).all()
    assert not any(block.attn1._forward_pre_hooks for _, block in transformer_blocks(sd.unet))
    assert not any(isinstance(each, torch.nn.Module) for each in sd.unet.attn_processors.values())


def test_it_repeats_itself_by_seed(sd, photo, region):
    method, example = DiffEditor(sd, steps=10), Example("a", photo, region[0, :, :, :64], POINTS)
    first, again, other = (method(example, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_it_takes_as_many_rounds_as_published(sd, photo):
    """The published code takes 50 + 128 + 28 + 28. Guidance doubles 58 of them, 4 go up in vain, 8 repeat features."""
    phases = [phase(number, 50) for number in range(50)]
    assert sum(each.rounds for each in phases) == 58
    assert sum(each.guided * each.rounds for each in phases) == 28
    assert [number for number, each in enumerate(phases) if each.rounds == 3] == [22, 24, 26, 28]
    assert [number for number, each in enumerate(phases) if each.noisy] == list(range(11, 20))
    assert DiffEditor(sd).cost(Example("a", photo)) == 50 + 128 + 28 + 28 - 58 - 4 - 8


def test_image_prompts_tell_photos_from_each_other(sd, photo, adapter_folder):
    prompt = load_image_prompt(sd.unet, adapter_folder)
    dark, bright = (prompt.tokens((photo + shift).clamp(-1, 1)) for shift in (-1, 1))
    assert dark.shape == (2, 4, 16) and difference(dark[1], bright[1]) > 1e-2
    assert torch.equal(dark[0], bright[0])
    x, context = torch.randn(1, 4, 8, 8), sd.embed()
    with torch.no_grad():
        plain = sd.predictor(context)(x, 500)
        guided = [prompt.predictor(context, tokens)(x, 500) for tokens in (dark, bright)]
    assert difference(guided[0], guided[1]) > 1e-4 < difference(guided[0], plain)


def other_encoder(folder):
    config = CLIPVisionConfig.from_pretrained(folder)
    config.hidden_size = 8
    CLIPVisionModelWithProjection(config).save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda folder: (folder / "adapter.bin").unlink(), "must hold one adapter, .* but holds 0"),
        (lambda folder: torch.save({}, folder / "adapter.bin"), "is not an IP-Adapter Plus for this U-Net"),
        (lambda folder: (folder / "adapter.bin").write_bytes(b"no"), "is not an IP-Adapter Plus for this U-Net"),
        (lambda folder: other_encoder(folder / "image_encoder"), "maps 24 to 16 features, but 8 to 16 are needed"),
        (lambda folder: shutil.rmtree(folder / "image_encoder"), "image_encoder cannot be loaded"),
    ],
)
def test_a_bad_image_prompt_is_refused(sd, adapter_folder, tmp_path, damage, match):
    folder = shutil.copytree(adapter_folder, tmp_path / "adapter")
    damage(folder)
    with pytest.raises(InputError, match=match):
        load_image_prompt(sd.unet, folder)


@pytest.mark.parametrize("points", [[32.0, 32, 33, 33], [0, 0, 63, 63], [63, 20, 0, 63]])
@pytest.mark.parametrize("whole", [True, False])
def test_short_drags_borders_and_whole_regions_are_edited(sd, photo, points, whole):
    region = torch.zeros(1, 64, 64, dtype=torch.bool)
    region[:, : 64 if whole else 40] = True
    edited = DiffEditor(sd, steps=10)(Example("a", photo, region, torch.tensor([points])), torch.Generator())
    assert torch.isfinite(edited).all()


def test_the_photo_is_seen_beside_the_edit(sd):
    attention = next(block for name, block in transformer_blocks(sd.unet) if name.startswith("up_blocks.")).attn1
    own, photo = torch.randn(2, 6, 32), torch.randn(1, 5, 32)
    sources = [photo] * 9
    with joined_tokens(sd.unet, sources):
        found = attention(own)
    both = torch.cat([own, photo.expand(2, -1, -1)], 1)
    assert torch.allclose(found, attention(own, encoder_hidden_states=both), atol=1e-6)
    assert difference(found, attention(own)) > 1e-3
    with torch.no_grad(), kept_tokens(sd.unet) as kept:
        sd.unet(torch.randn(1, 4, 8, 8), 1, sd.embed())
    assert len(kept) == 9 and kept[0].shape == (1, 4, 32) and kept[-1].shape == (1, 64, 32)
