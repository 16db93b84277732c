"""Made-up released files with the real names, and tiny networks filled with numbers that their names decide."""

import json
import zlib

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

WIDTHS = (32, 32, 32, 32)
POINT_WIDTH = 2
CROSS, IMAGE = 16, 12  # channels of a prompt's tokens and of an image embedding
UNET = {
    "block_out_channels": WIDTHS,
    "layers_per_block": 2,
    "cross_attention_dim": CROSS,
    "attention_head_dim": 2,
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    "norm_num_groups": 8,
    "sample_size": 8,
}
VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "projection_dim": IMAGE, "image_size": 224, "patch_size": 56,
}  # fmt: skip


def filled(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return numbers that the name decides, of the size that a layer of this shape needs."""
    numbers = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    scale = 0.1 if len(shape) < 2 else 1 / np.sqrt(np.prod(shape[1:]))
    shift = 1.0 if len(shape) == 1 and name.endswith("weight") else 0.0  # of a normalisation
    return torch.tensor(numbers * scale + shift, dtype=torch.float32)


def fill(network):
    """Fill a network in place, and return it."""
    network.load_state_dict({name: filled(name, tuple(x.shape)) for name, x in network.state_dict().items()})
    return network


def inpainting_folder(folder, tokenizer):
    """Write Stable Diffusion with nine channels from the folder of `sd_folder`."""
    vae = AutoencoderKL.from_pretrained(tokenizer, subfolder="vae")
    text = CLIPTextModel.from_pretrained(tokenizer, subfolder="text_encoder")
    fill(vae).save_pretrained(folder / "vae")
    fill(text).save_pretrained(folder / "text_encoder")
    fill(UNet2DConditionModel(in_channels=9, **UNET)).save_pretrained(folder / "unet")
    (folder / "tokenizer").symlink_to(tokenizer / "tokenizer")
    return folder


def appearance_shapes(unet) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the released appearance encoder: its last block ends at the first normalisation."""
    last, ends = "up_blocks.3.attentions.2.", ("norm.", "proj_in.", "transformer_blocks.0.norm1.")
    return {
        name: tuple(x.shape)
        for name, x in unet.state_dict().items()
        if not name.startswith(("conv_out.", "conv_norm_out."))
        and not (name.startswith(last) and not name.removeprefix(last).startswith(ends))
    }


def attention_shapes(unet, point_width: int, context: int) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return names and shapes of the released attention processors, by file: numbers count all of a U-Net's."""
    own, prompt = {}, {}
    levels = {"down_blocks.0": 0, "down_blocks.1": 1, "down_blocks.2": 2, "mid_block.attentions": 3}
    levels |= {"up_blocks.1": 2, "up_blocks.2": 1, "up_blocks.3": 0}
    for number, name in enumerate(unet.attn_processors):
        width = unet.get_submodule(name.removesuffix(".processor")).to_q.out_features
        if name.endswith("attn1.processor"):
            points = 8 * point_width * 2 ** levels[".".join(name.split(".")[:2])]
            own |= {f"{number}.norm.weight": (points,), f"{number}.norm.bias": (points,)}
            own |= {f"{number}.proj.weight": (width, points)}
        else:
            prompt |= {f"{number}.to_{x}_ip.weight": (width, context) for x in "kv"}
    return {"own": own, "prompt": prompt}


def point_shapes(width: int) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the released point embedding."""
    shapes, channels = {"conv_in.weight": (2 * width, 2, 3, 3)}, 2 * width
    for part in ("downsample_blocks_vae", "downsample_blocks_unet"):
        for block in range(3):
            shapes[f"{part}.{block}.conv1.weight"] = (2 * channels, channels, 3, 3)
            shapes[f"{part}.{block}.conv2.weight"] = (2 * channels, 2 * channels, 3, 3)
            channels *= 2
    return shapes


def lora_shapes(unet, rank: int) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of LCM-LoRA."""
    ends = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]
    ends += ["conv1", "conv2", "conv_shortcut", "conv", "time_emb_proj"]
    shapes = {}
    for name, module in unet.named_modules():
        if name.endswith(tuple("." + end for end in ends)):
            out, *rest = module.weight.shape
            layer = "lora_unet_" + name.replace(".", "_")
            shapes[f"{layer}.alpha"] = ()
            shapes[f"{layer}.lora_down.weight"] = (rank, *rest)
            shapes[f"{layer}.lora_up.weight"] = (out, rank, *[1] * (len(rest) - 1))
    return shapes


def lightning_drag_files(folder, rank: int = 2):
    """Write LightningDrag's checkpoints as its authors place them."""
    unet = UNet2DConditionModel(in_channels=4, **UNET)
    own, prompt = folder / "lightning-drag-sd15", folder / "IP-Adapter" / "models"

    def make(shapes, prefix):
        return {name: filled(f"{prefix}.{name}", shape) for name, shape in shapes.items()}

    for path in (own / "appearance_encoder", own / "point_embedding", folder / "lcm-lora-sdv1-5"):
        path.mkdir(parents=True)
    config = {**unet.config, "_class_name": "AppearanceEncoderModel"}
    (own / "appearance_encoder" / "config.json").write_text(json.dumps(config))
    shapes = appearance_shapes(unet)
    save_file(make(shapes, "appearance"), own / "appearance_encoder" / "diffusion_pytorch_model.safetensors")
    points = {name: 2 * x for name, x in make(point_shapes(POINT_WIDTH), "point").items()}  # SiLU halves small numbers
    torch.save(points, own / "point_embedding" / "point_embedding.pt")
    parts = attention_shapes(unet, POINT_WIDTH, CROSS)
    torch.save(make(parts["own"], "attn"), own / "lightning-drag-sd15-attn.bin")
    vision = CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION))
    fill(vision).save_pretrained(prompt / "image_encoder")
    image = {
        "proj.weight": (4 * CROSS, IMAGE),
        "proj.bias": (4 * CROSS,),
        "norm.weight": (CROSS,),
        "norm.bias": (CROSS,),
    }
    adapter = {"image_proj": make(image, "image_proj"), "ip_adapter": make(parts["prompt"], "ip")}
    torch.save(adapter, prompt / "ip-adapter_sd15.bin")
    lora = make(lora_shapes(unet, rank), "lora")
    lora |= {name: torch.tensor(0.5 * rank) for name in lora if name.endswith(".alpha")}
    save_file(lora, folder / "lcm-lora-sdv1-5" / "pytorch_lora_weights.safetensors")
    return folder


# Magic Fixup: the format of the first Stable Diffusion


def magic_unet_shapes(width: int, context: int) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of one of Magic Fixup's U-Nets, those of layers that never run included."""
    shapes, embedding = {}, 4 * width

    def affine(name, *shape):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    def residual(name, few, many):
        affine(f"{name}.in_layers.0", few)
        affine(f"{name}.in_layers.2", many, few, 3, 3)
        affine(f"{name}.emb_layers.1", many, embedding)
        affine(f"{name}.out_layers.0", many)
        affine(f"{name}.out_layers.3", many, many, 3, 3)
        if few != many:
            affine(f"{name}.skip_connection", many, few, 1, 1)

    def transformer(name, c):
        affine(f"{name}.norm", c)
        affine(f"{name}.proj_in", c, c, 1, 1)
        affine(f"{name}.proj_out", c, c, 1, 1)
        block = f"{name}.transformer_blocks.0"
        for attention, keys in (("attn1", c), ("attn2", context), ("attn3", c)):
            shapes[f"{block}.{attention}.to_q.weight"] = (c, c)
            shapes[f"{block}.{attention}.to_k.weight"] = shapes[f"{block}.{attention}.to_v.weight"] = (c, keys)
            affine(f"{block}.{attention}.to_out.0", c, c)
            affine(f"{block}.{attention}.merge_attentions", 8, 24, 1, 1)
            affine(f"{block}.{attention}.merge_attentions_missing", 8, 16, 1, 1)
        affine(f"{block}.ff.net.0.proj", 8 * c, c)
        affine(f"{block}.ff.net.2", c, 4 * c)
        for number in (1, 2, 3):
            affine(f"{block}.norm{number}", c)

    affine("time_embed.0", embedding, width)
    affine("time_embed.2", embedding, embedding)
    affine("input_blocks.0.0", width, 9, 3, 3)
    c, number, skips = width, 1, [width]
    for level, factor in enumerate((1, 2, 4, 4)):
        for _ in range(2):
            residual(f"input_blocks.{number}.0", c, factor * width)
            c = factor * width
            if level < 3:
                transformer(f"input_blocks.{number}.1", c)
            skips, number = [*skips, c], number + 1
        if level < 3:
            affine(f"input_blocks.{number}.0.op", c, c, 3, 3)
            skips, number = [*skips, c], number + 1
    residual("middle_block.0", c, c)
    transformer("middle_block.1", c)
    residual("middle_block.2", c, c)
    for number in range(12):
        level, last = 3 - number // 3, number % 3 == 2
        residual(f"output_blocks.{number}.0", c + skips.pop(), (1, 2, 4, 4)[level] * width)
        c = (1, 2, 4, 4)[level] * width
        if level < 3:
            transformer(f"output_blocks.{number}.1", c)
        if last and level:
            affine(f"output_blocks.{number}.{1 if level == 3 else 2}.conv", c, c, 3, 3)
    affine("out.0", width)
    affine("out.2", 4, width, 3, 3)
    return shapes


def magic_vae_shapes(width: int) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of Magic Fixup's autoencoder."""
    shapes, factors = {}, (1, 2, 4, 4)

    def affine(name, *shape):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    def residual(name, few, many):
        affine(f"{name}.norm1", few)
        affine(f"{name}.conv1", many, few, 3, 3)
        affine(f"{name}.norm2", many)
        affine(f"{name}.conv2", many, many, 3, 3)
        if few != many:
            affine(f"{name}.nin_shortcut", many, few, 1, 1)

    for part, ends in (("encoder", (3, 8)), ("decoder", (4, 3))):
        wide = 4 * width
        first, last = (width, wide) if part == "encoder" else (wide, width)
        affine(f"{part}.conv_in", first, ends[0], 3, 3)
        affine(f"{part}.norm_out", last)
        affine(f"{part}.conv_out", ends[1], last, 3, 3)
        for number in (1, 2):
            residual(f"{part}.mid.block_{number}", wide, wide)
        affine(f"{part}.mid.attn_1.norm", wide)
        for layer in ("q", "k", "v", "proj_out"):
            affine(f"{part}.mid.attn_1.{layer}", wide, wide, 1, 1)
        c = first
        for level in range(4) if part == "encoder" else reversed(range(4)):
            side, blocks = ("down", 2) if part == "encoder" else ("up", 3)
            for block in range(blocks):
                residual(f"{part}.{side}.{level}.block.{block}", c, factors[level] * width)
                c = factors[level] * width
            if part == "encoder" and level < 3:
                affine(f"{part}.down.{level}.downsample.conv", c, c, 3, 3)
            if part == "decoder" and level > 0:
                affine(f"{part}.up.{level}.upsample.conv", c, c, 3, 3)
    affine("quant_conv", 8, 8, 1, 1)
    affine("post_quant_conv", 4, 4, 1, 1)
    return shapes


LEVELS = [
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
]  # fmt: skip


def magic_fixup_shapes(width: int, context: int, vae_width: int) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of Magic Fixup's released file, without those of DINOv2."""
    shapes = dict.fromkeys(LEVELS, (1000,)) | {"learnable_vector": (1, 1, 768)}
    shapes |= {"proj_out.weight": (768, 384), "proj_out.bias": (768,)}
    for layer in ("final_ln", "mapper"):
        shapes |= {f"cond_stage_model.{layer}.weight": (32,), f"cond_stage_model.{layer}.bias": (32,)}
    for unet in ("diffusion_model", "reference_model"):
        shapes |= {f"model.{unet}.{name}": shape for name, shape in magic_unet_shapes(width, context).items()}
    return shapes | {f"first_stage_model.{name}": shape for name, shape in magic_vae_shapes(vae_width).items()}


def magic_fixup_file(path, rescaled: bool = True):
    """Write a tiny released file of Magic Fixup; its noise levels end at pure noise, or are Stable Diffusion's."""
    tensors = {name: filled(name, shape) for name, shape in magic_fixup_shapes(32, 16, 32).items()}
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    signal = (1 - betas).cumprod(0).sqrt()
    if rescaled:  # Lin et al. 2023, Algorithm 1
        signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    tensors["alphas_cumprod"] = (signal**2).float()
    torch.save(tensors, path)
    return path
