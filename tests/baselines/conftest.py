"""A folder of Stable Diffusion with tiny random networks."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from baselines import released
from fp_lightning.baselines.lightning_drag_weights import convert_lightning_drag
from fp_lightning.baselines.magic_fixup_weights import convert_magic_fixup
from fp_lightning.baselines.stable_diffusion import load_stable_diffusion

from .networks import formula

WIDTHS = (32, 32, 32, 32)
UNET = {
    "block_out_channels": WIDTHS,
    "layers_per_block": 2,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "norm_num_groups": 8,
}


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd")
    torch.manual_seed(0)
    up = ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3)
    UNet2DConditionModel(sample_size=8, **UNET, up_block_types=up).save_pretrained(folder / "unet")
    AutoencoderKL(
        block_out_channels=WIDTHS,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        norm_num_groups=8,
    ).save_pretrained(folder / "vae")
    names = ["<|startoftext|>", "<|endoftext|>", "a</w>", "b</w>"]
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    CLIPTextModel(CLIPTextConfig(vocab_size=len(names), bos_token_id=0, eos_token_id=1, **sizes)).save_pretrained(
        folder / "text_encoder"
    )
    words = tmp_path_factory.mktemp("words")
    (words / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    (words / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(words / "vocab.json"), str(words / "merges.txt"), model_max_length=77)
    tokenizer.save_pretrained(folder / "tokenizer")
    control = ControlNetModel(**UNET, conditioning_embedding_out_channels=(8, 8, 8, 8))
    for parameter in control.parameters():  # its output layers start at zero
        torch.nn.init.normal_(parameter, std=0.3)
    control.save_pretrained(folder / "scribble")
    return folder


@pytest.fixture(scope="session")
def sd(sd_folder):
    return load_stable_diffusion(sd_folder)


@pytest.fixture(scope="session")
def adapter_folder(tmp_path_factory):
    """An IP-Adapter Plus of four tokens for the U-Net of `sd_folder`."""
    folder = tmp_path_factory.mktemp("adapter")
    shapes = {"latents": (1, 4, 16)}
    shapes |= {"proj_in.weight": (16, 24), "proj_in.bias": (16,), "proj_out.weight": (16, 16), "proj_out.bias": (16,)}
    shapes |= {"norm_out.weight": (16,), "norm_out.bias": (16,)}
    for layer in [f"layers.{number}" for number in range(4)]:
        norms = ("0.norm1", "0.norm2", "1.0")
        shapes |= {f"{layer}.{name}.{kind}": (16,) for name in norms for kind in ("weight", "bias")}
        shapes |= {f"{layer}.0.to_q.weight": (128, 16), f"{layer}.0.to_kv.weight": (256, 16)}
        shapes |= {f"{layer}.0.to_out.weight": (16, 128)}
        shapes |= {f"{layer}.1.1.weight": (64, 16), f"{layer}.1.3.weight": (16, 64)}
    heads = {f"{2 * layer + 1}.to_{kind}_ip.weight": (32, 16) for layer in range(16) for kind in "kv"}
    torch.save({"image_proj": formula(shapes), "ip_adapter": formula(heads)}, folder / "adapter.bin")
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPVisionConfig(image_size=32, patch_size=16, projection_dim=8, **sizes)
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "image_encoder")
    return folder


@pytest.fixture(scope="session")
def inpainting(tmp_path_factory, sd_folder):
    """A folder of Stable Diffusion with nine channels."""
    return released.inpainting_folder(tmp_path_factory.mktemp("inpainting"), sd_folder)


@pytest.fixture(scope="session")
def lightning_drag_files(tmp_path_factory):
    """LightningDrag's checkpoints as released."""
    return released.lightning_drag_files(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="session")
def lightning_drag(tmp_path_factory, lightning_drag_files):
    """The folder that they are converted to."""
    out = tmp_path_factory.mktemp("converted") / "lightning_drag"
    convert_lightning_drag(lightning_drag_files, out)
    return out


@pytest.fixture(scope="session")
def magic_fixup_file(tmp_path_factory):
    """Magic Fixup's checkpoint as released."""
    return released.magic_fixup_file(tmp_path_factory.mktemp("released") / "magic_fixup.ckpt")


@pytest.fixture(scope="session")
def magic_fixup(tmp_path_factory, magic_fixup_file):
    """The folder that it is converted to."""
    out = tmp_path_factory.mktemp("converted") / "magic_fixup"
    convert_magic_fixup(magic_fixup_file, out, accept_license=True)
    return out
