"""LightningDrag against tensors that the published code computes, its conversion, and what must hold for it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from baselines import released
from fp_lightning.baselines.example import Example
from fp_lightning.baselines.lightning_drag import PointAttention, load_lightning_drag, point_maps
from fp_lightning.baselines.lightning_drag_weights import convert_lightning_drag, empty_adapter, lora_weights
from fp_lightning.baselines.lora import merge_lora
from fp_lightning.errors import InputError

POINTS = torch.tensor([[20.0, 24, 60, 30], [90, 40, 70, 50]])
SIZE = (64, 128)
ATTN_FILE = "lightning-drag-sd15/lightning-drag-sd15-attn.bin"
LORA_FILE = "lcm-lora-sdv1-5/pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def reference():
    """Computed by LightningDrag's code at 73de513 from the files of `released`, with float32 and mean latents."""
    return load_file(Path(__file__).parent / "data" / "lightning_drag.safetensors")


@pytest.fixture(scope="module")
def slow(tmp_path_factory, lightning_drag):
    """The converted folder without LCM-LoRA."""
    folder = shutil.copytree(lightning_drag, tmp_path_factory.mktemp("slow") / "lightning_drag")
    shutil.rmtree(folder / "lcm_lora")
    return folder


@pytest.fixture
def example():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 3), np.uint8)
    photo = np.array(Image.fromarray(pixels).resize(SIZE[::-1], Image.Resampling.BICUBIC))
    region = torch.zeros(1, *SIZE, dtype=torch.bool)
    region[:, 8:56, 16:100] = True
    return Example("a", torch.from_numpy(photo).permute(2, 0, 1) / 127.5 - 1, region=region, points=POINTS)


def difference(found, expected) -> float:
    return float((found - expected).norm() / expected.norm())


def states(method, example, monkeypatch) -> list[torch.Tensor]:
    """Return the latent after each step."""
    found, scheduler = [], method._scheduler()
    step = scheduler.step

    def recorded(*given, **options):
        output = step(*given, **options)
        found.append(output.prev_sample)
        return output

    monkeypatch.setattr(scheduler, "step", recorded)
    monkeypatch.setattr(method, "_scheduler", lambda: scheduler)
    method(example, torch.Generator().manual_seed(3))
    return found


@pytest.mark.parametrize("name", ["fast", "slow"])
def test_guided_steps_are_the_published_ones(name, inpainting, lightning_drag, slow, example, reference, monkeypatch):
    method = load_lightning_drag(inpainting, lightning_drag if name == "fast" else slow, steps=2)
    assert method.fast == (name == "fast")
    for number, x in enumerate(states(method, example, monkeypatch)):
        assert difference(x, reference[f"{name}.{number}"]) < 1e-4


def test_points_are_embedded_as_published(inpainting, slow, reference):
    adapter = load_lightning_drag(inpainting, slow).adapter
    found = adapter.point_embedding(point_maps(POINTS, SIZE))
    assert list(found) == [16, 32, 64, 128]
    for number, tokens in enumerate(found.values()):
        for part, x in zip(("handle", "target"), tokens, strict=True):
            expected = reference[f"{part}.{number}"].flatten(2).transpose(1, 2)
            assert difference(x, expected) < 1e-4 and expected.norm() > 0


def test_attention_with_points_and_reference_is_the_published_one(inpainting, slow, reference):
    method = load_lightning_drag(inpainting, slow)
    attention = method.sd.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    points = method.adapter.point_embedding(point_maps(POINTS, SIZE))
    generator = torch.Generator().manual_seed(4)
    own, photo = torch.randn(2, 128, 32, generator=generator), torch.randn(1, 128, 32, generator=generator)
    attention.processor.set(photo, points)
    assert difference(attention(own), reference["attention"]) < 1e-4
    attention.processor.set(photo, {width: (0 * a, 0 * b) for width, (a, b) in points.items()})
    assert difference(attention(own)[0], reference["attention"][0]) < 1e-4  # unconditional: points do not count
    assert difference(attention(own)[1], reference["attention"][1]) > 0.1


def test_every_point_has_its_number_even_at_the_border():
    maps = point_maps(torch.tensor([[3.0, 2, 5, 4], [128, 64, -1, 63]]), SIZE)
    assert maps.count_nonzero() == 4
    assert maps[0, 0, 2, 3] == maps[0, 1, 4, 5] == 1 and maps[0, 0, 63, 127] == maps[0, 1, 63, 0] == 2


def test_evaluations_are_counted_and_the_seed_decides(inpainting, lightning_drag, example):
    method = load_lightning_drag(inpainting, lightning_drag)
    seen = []
    for network in (method.sd.unet, method.appearance):
        network.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    edited = method(example, torch.Generator().manual_seed(0))
    assert sum(seen) == method.cost(example) == 16 + 1
    assert edited.shape == (3, *SIZE) and torch.isfinite(edited).all()
    assert torch.equal(edited, method(example, torch.Generator().manual_seed(0)))
    assert not torch.equal(edited, method(example, torch.Generator().manual_seed(1)))


# Conversion


def test_a_folder_without_lcm_lora_takes_25_steps(lightning_drag_files, inpainting, tmp_path, slow):
    folder = shutil.copytree(lightning_drag_files, tmp_path / "checkpoints")
    shutil.rmtree(folder / "lcm-lora-sdv1-5")
    assert "25 steps instead of 8" in str(convert_lightning_drag(folder, tmp_path / "out", torch.float16))
    method = load_lightning_drag(inpainting, tmp_path / "out")
    assert (method.fast, method.steps, method.guidance, method.cost(None)) == (False, 25, 4.0, 51)
    half = load_file(tmp_path / "out" / "adapter" / "diffusion_pytorch_model.safetensors")
    full = load_file(slow / "adapter" / "diffusion_pytorch_model.safetensors")
    assert half.keys() == full.keys()
    assert all(
        tensor.dtype == torch.float16 and torch.equal(tensor, full[name].half()) for name, tensor in half.items()
    )


def without(path, name):
    load, save = (load_file, save_file) if path.suffix == ".safetensors" else (torch.load, torch.save)
    tensors = load(path)
    tensors.pop(name)
    save(tensors, path)


def with_another(path, name):
    load, save = (load_file, save_file) if path.suffix == ".safetensors" else (torch.load, torch.save)
    save({**load(path), name: torch.zeros(2)}, path)


@pytest.mark.parametrize(
    ("file", "change", "name", "match"),
    [
        (ATTN_FILE, without, "30.proj.weight", "1 missing in adapter .first: processors.30.proj.weight"),
        (ATTN_FILE, with_another, "32.proj.weight", "1 unexpected in adapter .first: processors.32.proj.weight"),
        (
            "lightning-drag-sd15/appearance_encoder/diffusion_pytorch_model.safetensors",
            without,
            "conv_in.weight",
            "1 missing in appearance_encoder .first: conv_in.weight",
        ),
        (
            "lightning-drag-sd15/point_embedding/point_embedding.pt",
            without,
            "downsample_blocks_unet.2.conv2.weight",
            "missing in adapter .first: point_embedding.blocks.5.2.weight",
        ),
        (LORA_FILE, without, "lora_unet_mid_block_resnets_0_conv1.alpha", "1 missing tensors .first: lora_unet_mid"),
        (LORA_FILE, with_another, "lora_te_x.weight", "1 unexpected tensors .first: lora_te_x.weight"),
    ],
)
def test_other_names_are_one_line(lightning_drag_files, tmp_path, file, change, name, match):
    folder = shutil.copytree(lightning_drag_files, tmp_path / "checkpoints")
    change(folder / file, name)
    with pytest.raises(InputError, match=match):
        convert_lightning_drag(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", [ATTN_FILE, LORA_FILE, "IP-Adapter/models/image_encoder/config.json"])
def test_a_missing_file_is_named(lightning_drag_files, tmp_path, file):
    folder = shutil.copytree(lightning_drag_files, tmp_path / "checkpoints")
    (folder / file).unlink()
    with pytest.raises(InputError, match=Path(file).name):
        convert_lightning_drag(folder, tmp_path / "out")


def test_a_missing_part_and_another_base_are_one_line(inpainting, lightning_drag, sd_folder, tmp_path):
    for part in ("appearance_encoder", "adapter", "image_encoder"):
        folder = shutil.copytree(lightning_drag, tmp_path / part)
        shutil.rmtree(folder / part)
        with pytest.raises(InputError, match=f"{part}.*convert the released files"):
            load_lightning_drag(inpainting, folder)
    with pytest.raises(InputError, match="4 input channels, but 9 are needed"):
        load_lightning_drag(sd_folder, lightning_drag)
    large = shutil.copytree(inpainting, tmp_path / "large", symlinks=True)
    config = json.loads((large / "unet" / "config.json").read_text()) | {"addition_embed_type": "text_time"}
    (large / "unet" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="such as SDXL; this needs Stable Diffusion 1.x"):
        load_lightning_drag(large, lightning_drag)
    wide = shutil.copytree(inpainting, tmp_path / "wide", symlinks=True)
    shutil.rmtree(wide / "unet")
    UNet2DConditionModel(in_channels=9, **released.UNET | {"cross_attention_dim": 8}).save_pretrained(wide / "unet")
    with pytest.raises(InputError, match=r"the layers of .* do not fit"):
        load_lightning_drag(wide, lightning_drag)
    unet = UNet2DConditionModel.from_pretrained(wide, subfolder="unet").requires_grad_(False)
    with pytest.raises(InputError, match="attn2.to_k has another shape in the U-Net.*convert"):
        merge_lora(unet, lightning_drag / "lcm_lora" / "pytorch_lora_weights.safetensors", "convert it again")
    with pytest.raises(InputError, match="--steps must be 1 to 50, got 0; try 8"):
        load_lightning_drag(inpainting, lightning_drag, steps=0)


def test_names_and_shapes_of_the_full_size_fit(tmp_path):
    """Stable Diffusion 1.5, CLIP ViT-H and rank 64, without any numbers."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(in_channels=4, cross_attention_dim=768, attention_head_dim=8)
        sizes = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 16, "projection_dim": 1024}
        config = CLIPVisionConfig(num_hidden_layers=1, **sizes)
        image = CLIPVisionModelWithProjection(config)
    adapter = empty_adapter(unet, image.config.projection_dim, 16)
    expected = {f"processors.{name}" for part in released.attention_shapes(unet, 16, 768).values() for name in part}
    found = {name.replace("_ip.0.weight", "_ip.weight") for name in adapter.processors.state_dict(prefix="processors.")}
    assert found == expected and len(adapter.processors) == 32
    assert [layer for layer in adapter.config.layers if layer[1] == 1280][-1] == (1024, 1280)  # the middle block
    assert isinstance(adapter.processors[30], PointAttention)
    sizes = {name: tuple(x.shape) for name, x in adapter.point_embedding.state_dict().items()}
    assert sorted(sizes.values()) == sorted(released.point_shapes(16).values())
    names = released.lora_shapes(unet, 1)
    small = {name: torch.zeros(shape, dtype=torch.float16) for name, shape in names.items()}
    save_file(small, tmp_path / "lora.safetensors")
    weights = lora_weights(tmp_path / "lora.safetensors", unet)
    assert len(weights) == 2 * len(names) // 3 == 2 * 278
    assert weights["mid_block.attentions.0.proj_in.lora_A.weight"].shape == (1, 1280, 1, 1)
