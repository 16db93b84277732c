"""DDIM against diffusers' schedulers, and loading."""

import json
import shutil

import pytest
import torch
from diffusers import DDIMScheduler

from fp_lightning.baselines.stable_diffusion import (
    SCHEDULE,
    Ddim,
    alphas_cumprod,
    late_blocks,
    load_stable_diffusion,
    transformer_blocks,
)
from fp_lightning.errors import InputError


@pytest.fixture
def scheduler():
    scheduler = DDIMScheduler(**SCHEDULE)
    scheduler.set_timesteps(50)
    return scheduler


def test_levels_and_steps_are_those_of_diffusers(scheduler):
    ddim = Ddim(50)
    assert ddim.timesteps == scheduler.timesteps.tolist()
    assert torch.allclose(alphas_cumprod().float(), scheduler.alphas_cumprod, rtol=1e-5)
    x, noise = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    for timestep in (981, 441, 1):
        assert torch.allclose(ddim.step(x, noise, timestep), scheduler.step(noise, timestep, x).prev_sample, atol=1e-5)


def test_a_move_up_undoes_a_move_down():
    ddim, x, noise = Ddim(50), torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    below = ddim.move(x, noise, 441, 421)
    assert not torch.allclose(below, x, atol=1e-2)
    assert torch.allclose(ddim.move(below, noise, 421, 441), x, atol=1e-5)


def test_inverting_and_sampling_return_the_latent():
    """With the exact noise of normally distributed latents; the rest falls fourfold with twice the levels."""
    x, errors = torch.randn(1, 4, 8, 8), []
    for steps in (50, 100):
        ddim = Ddim(steps)

        def predict(x, timestep, ddim=ddim):
            return (1 - ddim.level(timestep)) ** 0.5 * x

        again = ddim.sample(ddim.invert(x, predict)[-1], predict)
        errors.append(float((again - x).norm() / x.norm()))
    assert errors[1] < 0.02 and errors[1] == pytest.approx(errors[0] / 4, rel=0.1)


def test_partial_inversion_ends_at_its_level(sd):
    states = Ddim(50).invert(torch.randn(1, 4, 8, 8), lambda x, timestep: torch.full_like(x, timestep), 3)
    assert len(states) == 4
    seen = []
    Ddim(50).sample(states[-1], lambda x, timestep: (seen.append(timestep), x)[1], 3)
    assert seen == [41, 21, 1]


def test_transformer_blocks_are_in_the_order_in_which_they_run(sd):
    names, ran = [name for name, _ in transformer_blocks(sd.unet)], []
    hooks = [
        block.register_forward_hook(lambda *call, name=name: ran.append(name))
        for name, block in transformer_blocks(sd.unet)
    ]
    with torch.no_grad():
        sd.unet(torch.randn(1, 4, 8, 8), 1, sd.embed())
    for hook in hooks:
        hook.remove()
    assert ran == names and len(names) == 16
    assert [name for name, _ in late_blocks(sd.unet)] == names[10:]


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"in_channels": 9}, "9 input channels, but 4 are needed"),
        ({"addition_embed_type": "text_time"}, "such as SDXL; this needs Stable Diffusion 1.x"),
    ],
)
def test_another_kind_of_model_is_refused(sd_folder, tmp_path, config, match):
    folder = shutil.copytree(sd_folder, tmp_path / "sd")
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises(InputError, match=match):
        load_stable_diffusion(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer"])
def test_a_missing_part_is_named(sd_folder, tmp_path, part):
    folder = shutil.copytree(sd_folder, tmp_path / "sd")
    shutil.rmtree(folder / part)
    with pytest.raises(InputError, match=f"{part}.*download the folder again"):
        load_stable_diffusion(folder)
    with pytest.raises(InputError, match="is not a folder"):
        load_stable_diffusion(tmp_path / "nowhere")
