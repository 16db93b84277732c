"""The methods against tensors that the published code computes, and by what must hold for them."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel
from safetensors.torch import load_file

from fp_lightning.baselines import sde_drag
from fp_lightning.baselines.drag_diffusion import DragDiffusion, motion_loss, track
from fp_lightning.baselines.example import Example
from fp_lightning.baselines.floors import Copy, Warp
from fp_lightning.baselines.lora import LoraSettings, one_image_lora
from fp_lightning.baselines.masactrl import MasaCtrl
from fp_lightning.baselines.mutual import mutual_attention
from fp_lightning.baselines.sde_drag import SdeDrag
from fp_lightning.baselines.stable_diffusion import Ddim, late_blocks
from fp_lightning.signals.region import drag_region

NO_LORA = LoraSettings(steps=0)
SIZE = (64, 64)


@pytest.fixture(scope="module")
def reference():
    """Computed once by the code of SDE-Drag at 881364a and DragDiffusion at ebe659a, with toy networks."""
    return load_file(Path(__file__).parent / "data" / "reference.safetensors")


def difference(found, expected) -> float:
    return float((found - expected).norm() / expected.norm())


def example(**signals) -> Example:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 8, 8, generator=generator) * 2 - 1
    return Example("a", F.interpolate(coarse, SIZE, mode="bicubic")[0].clamp(-1, 1), **signals)


@pytest.fixture
def dragged() -> Example:
    points = torch.tensor([[16.0, 24, 40, 24]])
    region = torch.zeros(1, *SIZE, dtype=torch.bool)
    region[:, 8:48, 8:56] = True
    return example(points=points, region=region)


# SDE-Drag


def toy_noise(reference):
    def predict(x, timestep):
        return torch.tanh(F.conv2d(x, reference["conv.weight"], reference["conv.bias"], padding=1) + timestep / 1000)

    return predict


def test_sde_drag_takes_the_published_step(reference):
    ddim, noise = Ddim(200, final=1.0), toy_noise(reference)
    x, below, here = (reference[f"sde.{name}"] for name in ("x", "below", "here"))
    recorded = sde_drag.residual(ddim, below, here, noise(here, 401), 401)
    assert difference(sde_drag.cycle_step(ddim, x, noise(x, 401), recorded, 401), reference["sde.out"]) < 1e-4


def test_sde_drag_goes_up_as_published(reference):
    """The drawn noise is that of the published code: one normal tensor a level."""
    torch.manual_seed(5)
    states = sde_drag.forward(Ddim(200, final=1.0), reference["drag.clean"], 10, torch.default_generator)
    assert difference(torch.cat(states), reference["drag.states"]) < 1e-4


def test_sde_drag_copies_and_pastes_as_published(reference, sd):
    torch.manual_seed(6)
    begin, end = torch.tensor([[2, 3], [5, 5]]), torch.tensor([[4, 3], [5, 6]])
    pasted = SdeDrag(sd, radius=2)._paste(reference["drag.states"][-1:], begin, end, torch.default_generator)
    assert difference(pasted, reference["drag.pasted"]) < 1e-4


def test_sde_drag_comes_down_as_published(reference):
    states = list(reference["drag.states"].split(1))
    region = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    region[..., 1:7, 2:8] = True
    found = sde_drag.backward(Ddim(200, final=1.0), reference["drag.pasted"], states, toy_noise(reference), region)
    assert difference(found, reference["drag.back"]) < 1e-4


def test_sde_drag_weighs_its_adapters_as_published(reference):
    scales = [sde_drag.adapter_scale(number, 9, 0.5) for number in range(1, 11)]
    assert scales == pytest.approx(reference["drag.scales"].tolist(), abs=1e-6)


def test_sde_drag_returns_an_unchanged_latent(reference):
    ddim, clean = Ddim(200, final=1.0), reference["drag.clean"]
    states = sde_drag.forward(ddim, clean, 20, torch.Generator().manual_seed(0))
    found = sde_drag.backward(ddim, states[-1], states, toy_noise(reference), torch.ones(1, dtype=torch.bool))
    assert difference(found, clean) < 1e-4


def test_hops_are_near_their_length_and_end_at_the_target():
    points = torch.tensor([[0, 0, 12, 0], [5, 5, 5, 8]])
    hops = sde_drag.hops_of(points, 2.0)
    assert len(hops) == 6
    assert torch.equal(hops[0][0], points[:, :2]) and torch.equal(hops[-1][1], points[:, 2:])
    assert all(torch.equal(end, begin) for (_, end), (begin, _) in pairwise(hops))
    assert len(sde_drag.hops_of(torch.tensor([[0, 0, 1, 0]]), 2.0)) == 1


def test_sde_drag_repeats_itself_by_seed_and_counts(sd, dragged):
    method = SdeDrag(sd, steps=20, level=0.5, radius=2, lora=NO_LORA)
    seen = []
    hook = sd.unet.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    edited = method(dragged, torch.Generator().manual_seed(0))
    hook.remove()
    assert sum(seen) == method.cost(dragged) == 2 * 10 * 2  # two hops
    assert edited.shape == (3, *SIZE)
    assert not torch.equal(edited, method(dragged, torch.Generator().manual_seed(1)))
    assert torch.equal(edited, method(dragged, torch.Generator().manual_seed(0)))


# DragDiffusion


def toy_features(x):
    """Elementwise, so that the first step below x is equal to the last bit whenever it is computed."""
    noise, features = torch.tanh(0.7 * x.roll(1, -2)), torch.tanh(torch.cat([x, x.roll(1, -1)], 1))
    return Ddim(50).step(x, noise, 681), F.interpolate(features, (32, 40), mode="bilinear")


HANDLES = torch.tensor([[10.0, 12], [9, 31]])
TARGETS = torch.tensor([[14.0, 20], [17, 23]])


def test_drag_diffusion_optimises_as_published(reference, sd):
    free = F.interpolate(reference["dd.mask"], (8, 10), mode="nearest")
    method = DragDiffusion(sd, iterations=3)
    code = reference["dd.code"]
    found = method.optimise(code, toy_features, HANDLES, TARGETS, free.double())
    assert difference(found - code, reference["dd.out"] - code) < 1e-4


def test_drag_diffusion_tracks_as_published(reference):
    found = track(reference["dd.F0"], reference["dd.F1"], HANDLES, HANDLES, 3)
    assert torch.equal(found, reference["dd.tracked"])


def test_ddim_steps_are_those_of_drag_diffusion(reference):
    ddim, x, noise = Ddim(50), reference["sde.x"], reference["dd.e"]
    assert difference(ddim.step(x, noise, 441), reference["dd.step"]) < 1e-5
    assert difference(ddim.move(x, noise, 421, 441), reference["dd.inv"]) < 1e-5


def test_motion_loss_falls_when_features_have_moved():
    image = torch.zeros(1, 1, 16, 16)
    image[..., 6:9, 6:9] = 1
    handle, target = torch.tensor([[7.0, 7]]), torch.tensor([[7.0, 14]])
    still = motion_loss(image, handle, target, 1)
    assert still > 0 and motion_loss(torch.ones(1, 1, 16, 16), handle, target, 1) == 0
    assert motion_loss(image, target, target, 1) == 0


def test_drag_diffusion_moves_and_counts(sd, dragged):
    method = DragDiffusion(sd, steps=10, iterations=2, lora=NO_LORA)
    seen = []
    hook = sd.unet.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    edited = method(dragged, torch.Generator().manual_seed(0))
    hook.remove()
    assert edited.shape == (3, *SIZE) and torch.isfinite(edited).all()
    assert sum(seen) <= method.cost(dragged) == 7 + 1 + 2 + 14


# LoRA


def test_lora_learns_the_photo_and_leaves_nothing(sd, dragged):
    before = {name: weight.clone() for name, weight in sd.unet.state_dict().items()}
    x, context = torch.randn(1, 4, 8, 8), sd.embed()
    plain = sd.predictor(context)(x, 500).detach()
    settings = LoraSettings(rank=2, steps=3, learning_rate=1e-2, batch=2)
    with one_image_lora(sd, dragged.photo, context, settings, torch.Generator().manual_seed(0)), torch.no_grad():
        changed = sd.predictor(context)(x, 500)
        off = sd.predictor(context, cross_attention_kwargs={"scale": 0.0})(x, 500)
    assert difference(changed, plain) > 1e-4 and difference(off, plain) < 1e-5
    after = sd.unet.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert not any(parameter.requires_grad for parameter in sd.unet.parameters())


# MasaCtrl


def test_mutual_attention_reads_the_source(sd):
    attention = late_blocks(sd.unet)[0][1].attn1
    tokens = torch.randn(4, 6, 32)
    plain = attention(tokens)
    with mutual_attention(sd.unet):
        mutual = attention(tokens)
    assert torch.allclose(mutual[::2], plain[::2], atol=1e-5)
    for edit in (1, 3):  # an edit's queries over the keys and values of the image before it
        expected = attention(tokens[edit : edit + 1], encoder_hidden_states=tokens[edit - 1 : edit])
        assert torch.allclose(mutual[edit], expected[0], atol=1e-5)
    assert torch.equal(attention(tokens), plain)


def test_masactrl_follows_the_sketch_and_keeps_the_source(sd, sd_folder):
    control = ControlNetModel.from_pretrained(sd_folder, subfolder="scribble")
    method = MasaCtrl(sd, control, steps=10, first_step=4)
    black, drawn = torch.zeros(3, *SIZE), torch.zeros(3, *SIZE)
    drawn[:, 20:24] = 1
    edits = [method(example(sketch=sketch), torch.Generator()) for sketch in (black, drawn)]
    assert difference(edits[0], edits[1]) > 1e-3
    off = MasaCtrl(sd, control, steps=10, first_step=4, control_scale=0.0)
    without = [off(example(sketch=sketch), torch.Generator()) for sketch in (black, drawn)]
    assert torch.equal(*without)
    assert method.cost(example(sketch=drawn)) == 40


# Floors


def test_copy_is_the_photo(dragged):
    assert torch.equal(Copy()(dragged, torch.Generator()), dragged.photo)


def test_warp_brings_the_handle_to_the_target(dragged):
    edited = Warp()(dragged, torch.Generator())
    assert torch.equal(edited[:, ~dragged.region[0]], dragged.photo[:, ~dragged.region[0]])
    near = (edited[:, 24, 40] - dragged.photo[:, 24, 16]).abs().max()
    assert near < 0.02 < (dragged.photo[:, 24, 40] - dragged.photo[:, 24, 16]).abs().max()


def test_the_region_of_drags_surrounds_them():
    region = drag_region(torch.tensor([[100.0, 256, 300, 256]]), (512, 512))[0]
    assert region[256, 200] and region[256 + 60, 200] and region[256, 300 + 60]
    assert not region[256 + 70, 200] and not region[256, 300 + 70] and not region[256, 20]
