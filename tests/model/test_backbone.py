"""Loading a backbone: pretrained, copied and random weights, and messages about missing files."""

import shutil

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing
from safetensors.torch import load_file, save_file

from fp_lightning.errors import InputError
from fp_lightning.model.matching import spatial_attentions
from fp_lightning.model.svd.load import load_backbone
from fp_lightning.model.svd.prior import resized


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy for tests that damage it."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


def test_pretrained_weights_arrive_and_the_branch_copies_them(tiny_folder):
    plain = UNetSpatioTemporalConditionModel.from_pretrained(tiny_folder, subfolder="unet")
    unet = load_backbone(str(tiny_folder)).unet
    loaded = unet.state_dict()
    for name, value in plain.state_dict().items():
        assert torch.equal(loaded[name], value), name
    for attn in spatial_attentions(unet).values():
        assert torch.equal(attn.processor.to_k.weight, attn.to_k.weight)
        assert attn.processor.to_out[0].weight.abs().sum() == 0


def test_random_weights_repeat_with_the_seed_and_end_in_zeros(tiny_folder):
    first, again, other = (load_backbone(str(tiny_folder), "random", seed=s) for s in (1, 1, 2))
    weight = [b.unet.conv_in.weight for b in (first, again, other)]
    assert torch.equal(weight[0], weight[1]) and not torch.equal(weight[0], weight[2])
    assert torch.equal(first.control_encoder.mid_convs[1].weight, again.control_encoder.mid_convs[1].weight)
    assert first.unet.conv_out.weight.abs().sum() == 0


def test_loading_leaves_the_callers_random_numbers_alone(tiny_folder):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load_backbone(str(tiny_folder), "random", seed=5)
    assert torch.equal(torch.rand(1), expected)


def test_the_tiny_build_of_the_package_loads():
    backbone = load_backbone("tiny", "random")
    assert backbone.scheduler.config.sigma_max == 40
    assert backbone.vae.config.scaling_factor != 0.18215  # measured, not SVD's


@pytest.mark.parametrize("part", ["unet", "vae", "image_encoder"])
def test_missing_weights_name_file_place_and_remedy(folder, part):
    for path in (folder / part).glob("*.safetensors"):
        path.unlink()
    with pytest.raises(InputError, match=rf"no \w+\.safetensors in .*{part}; get it with `hf download") as error:
        load_backbone(str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["unet", "vae", "image_encoder", "scheduler"])
def test_missing_part_is_named(folder, part):
    shutil.rmtree(folder / part)
    with pytest.raises(InputError, match=rf"{part} of the model is not complete: no \w*config.json"):
        load_backbone(str(folder))


@pytest.mark.parametrize("part", ["unet", "vae", "image_encoder"])
def test_weights_that_lack_a_tensor_are_refused(folder, part):
    path = next((folder / part).glob("*.safetensors"))
    tensors = load_file(path)
    first = sorted(tensors)[0]
    del tensors[first]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"lack 1 tensors, the first {first}"):
        load_backbone(str(folder))


def test_truncated_weights_are_refused(folder):
    path = next((folder / "vae").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"vae in .* cannot be loaded"):
        load_backbone(str(folder))


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="no model folder .*nowhere.*`hf download"):
        load_backbone(str(tmp_path / "nowhere"))


def test_unreachable_hub_model_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"neither in the hub cache .* nor reachable.*licence.*hf auth login") as error:
        load_backbone("some-owner/some-model")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("height", "width", "side"), [(32, 32, 32), (64, 48, 32), (100, 70, 32), (16, 24, 32)])
def test_images_are_resized_for_clip_as_in_diffusers(height, width, side):
    image = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resized(image, side), _resize_with_antialiasing(image, (side, side)))
