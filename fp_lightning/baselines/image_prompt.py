"""Image prompts (IP-Adapter Plus, Ye et al. 2023): tokens of a photo that the cross-attention sees with the text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from fp_lightning.baselines.stable_diffusion import Predict, load_part
from fp_lightning.errors import InputError
from fp_lightning.files import reason
from fp_lightning.media.images import unsqueeze

SIDE = 256  # pixels to which the photo is resized without its aspect, as DiffEditor does


@dataclass
class ImagePrompt:
    """A photo as a prompt, with classifier-free guidance against the prompt of a blank image.

    Attributes:
        unet: the network, which is not changed outside of predictions.
        processors: its attention with the adapter's weights, by name.
        projection: from the encoder's features to tokens.
        encoder: of the photo.
        scale: weight of the prompt beside the text.
        guidance: of classifier-free guidance.
    """

    unet: UNet2DConditionModel
    processors: dict[str, Any]
    projection: nn.Module
    encoder: CLIPVisionModelWithProjection
    scale: float = 0.1
    guidance: float = 4.0

    @torch.no_grad()
    def tokens(self, photo: Tensor) -> Tensor:
        """Return the tokens of a blank image and of a photo [3, H, W] in [-1, 1]: [2, n, d]."""
        side = self.encoder.config.image_size
        size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
        picture = Image.fromarray(unsqueeze(photo, (SIDE, SIDE)).permute(1, 2, 0).numpy())
        pixels = CLIPImageProcessor(**size)(picture, return_tensors="pt").pixel_values.to(self.unet.device)
        both = torch.cat([torch.zeros_like(pixels), pixels]).to(self.encoder.dtype)
        return self.projection(self.encoder(both, output_hidden_states=True).hidden_states[-2])

    def predictor(self, context: Tensor, tokens: Tensor) -> Predict:
        """Return the guided noise prediction for a batch of one.

        Args:
            context: text embedding [1, tokens, d].
            tokens: see `tokens`.
        """
        for processor in self.processors.values():
            if hasattr(processor, "scale"):
                processor.scale = [self.scale]

        def predict(x: Tensor, timestep: int) -> Tensor:
            kept = self.unet.attn_processors
            try:
                self.unet.set_attn_processor(dict(self.processors))
                both = (context.expand(2, -1, -1), [tokens])
                without, prompted = self.unet(torch.cat([x, x]), timestep, both).sample.chunk(2)
            finally:
                self.unet.set_attn_processor(kept)
            return without + self.guidance * (prompted - without)

        return predict


def load_image_prompt(unet: UNet2DConditionModel, folder: Path) -> ImagePrompt:
    """Load an IP-Adapter Plus for a U-Net: a folder with one .bin or .safetensors file, and `image_encoder`.

    Raises:
        InputError: a part is missing or damaged, or the adapter is for another network.
    """
    found = sorted(each for each in folder.glob("*") if each.suffix in (".bin", ".safetensors"))
    if len(found) != 1:
        raise InputError(f"--model {folder} must hold one adapter, such as ip_sd15_64.bin, but holds {len(found)}")
    encoder = load_part(CLIPVisionModelWithProjection, folder, "image_encoder", unet.dtype).to(unet.device)
    try:
        stored = _read(found[0])
        processors = unet._convert_ip_adapter_attn_to_diffusers([stored], low_cpu_mem_usage=False)
        projection = unet._convert_ip_adapter_image_proj_to_diffusers(stored["image_proj"], low_cpu_mem_usage=False)
        wanted = encoder.config.hidden_size, unet.config.cross_attention_dim
        sizes = projection.proj_in.in_features, projection.proj_out.out_features
    except Exception as error:  # torch, safetensors and diffusers each raise their own kinds
        raise InputError(
            f"{found[0]} is not an IP-Adapter Plus for this U-Net ({reason(error)}); use ip_sd15_64.bin"
        ) from error
    if sizes != wanted:
        raise InputError(
            f"{found[0]} maps {sizes[0]} to {sizes[1]} features, but {wanted[0]} to {wanted[1]} are needed; "
            "use the image_encoder and the Stable Diffusion that it was trained with"
        )
    for module in (projection, *processors.values()):
        if isinstance(module, nn.Module):
            module.to(unet.device, unet.dtype).eval().requires_grad_(False)
    return ImagePrompt(unet, processors, projection, encoder)


def _read(path: Path) -> dict[str, dict[str, Tensor]]:
    """Return the adapter's tensors in its parts, `image_proj` and `ip_adapter`. Pickles can hold nothing else."""
    if path.suffix == ".bin":
        return torch.load(path, map_location="cpu", weights_only=True)
    parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in load_file(path).items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    return parts
