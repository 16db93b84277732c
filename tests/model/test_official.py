"""Network and sampling against tensors made by the public FramePainter code (see data/official/README.md)."""

import zlib
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder, EulerDiscreteScheduler
from safetensors.torch import load_file
from torch import Tensor, nn

from fp_lightning.inference.sampler import Sampling, sample
from fp_lightning.model.control import ControlEncoder, inject
from fp_lightning.model.editor import OFFICIAL, FramePainter
from fp_lightning.model.svd.prior import SVDPrior
from fp_lightning.model.svd.unet import FramePainterUNet
from fp_lightning.model.tiny import tiny_image_encoder
from fp_lightning.types import EditBatch, to_unit_range

GOLDEN = Path(__file__).parent / "data" / "official" / "golden.safetensors"
SMALL = {  # the released control encoder always ends in 320 channels, so the first block has as many
    "sample_size": 16,
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal"),
    "up_block_types": ("CrossAttnUpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    "block_out_channels": (320, 64),
    "addition_time_embed_dim": 32,
    "projection_class_embeddings_input_dim": 96,
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "num_attention_heads": (5, 2),
    "num_frames": 2,
}

SMALL_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "block_out_channels": (64, 32, 64),
    "layers_per_block": 1,
    "latent_channels": 4,
    "sample_size": 64,
}


def values(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return standard normal numbers that depend on the name alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


@torch.no_grad()
def fill(network: nn.Module) -> nn.Module:
    """Set weights by their released names, scaled to keep activations near one."""
    for name, weight in network.named_parameters():
        n = values(name.replace(".attn1.processor.", ".sparse_attention."), tuple(weight.shape))
        if weight.ndim > 1:
            weight.copy_(n / weight[0].numel() ** 0.5)
        else:
            weight.copy_(0.1 * n + (1 if "norm" in name and name.endswith("weight") else 0))
    return network


def scheduler() -> EulerDiscreteScheduler:
    """Make SVD's scheduler."""
    return EulerDiscreteScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        timestep_spacing="leading",
        timestep_type="continuous",
        steps_offset=1,
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
    )


def error(ours: Tensor, reference: Tensor) -> float:
    """Return the largest difference divided by the largest value."""
    return ((ours - reference).abs().max() / reference.abs().max()).item()


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    tensors = load_file(GOLDEN)
    return tensors | {"control": tensors["control"].expand(-1, -1, 3, -1, -1).float()}


@pytest.fixture(scope="module")
def control_encoder() -> nn.Module:
    return fill(ControlEncoder()).eval()


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    return fill(FramePainterUNet(**SMALL, match_queries=OFFICIAL["match_queries"])).eval()


@torch.no_grad()
def test_control_encoder(golden, control_encoder):
    response = control_encoder(golden["control"].flatten(0, 1), golden["c_noise"].expand(4))
    assert error(response, golden["response"]) < 1e-5


def test_injection(golden):
    scale = OFFICIAL["control_factor"] * torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert error(inject(golden["features"], golden["response"], scale), golden["injected"]) < 1e-5


@torch.no_grad()
def forward(unet: nn.Module, golden: dict[str, Tensor]) -> Tensor:
    ids, scale = torch.tensor([[6.0, 128.0, 0.02]] * 2), torch.tensor([0.0, OFFICIAL["control_factor"]])
    response = golden["response"].unflatten(0, (2, 2))
    return unet(golden["x"], golden["c_noise"].expand(2), golden["embedding"], ids, response, scale)[0]


def test_unet(golden, unet):
    assert error(forward(unet, golden), golden["output"]) < 1e-5


def test_the_paper_s_queries_are_another_function(golden, unet):
    unet.set_match_queries("target")
    try:
        assert error(forward(unet, golden), golden["output"]) > 1e-3
    finally:
        unet.set_match_queries("both")


def test_guided_sampling_of_25_steps(golden, unet, control_encoder):
    vae, image_encoder = fill(AutoencoderKLTemporalDecoder(**SMALL_VAE)), fill(tiny_image_encoder())
    prior = SVDPrior(unet, vae, image_encoder, scheduler())
    editor = FramePainter(prior, control_encoder, control_frames="both").eval()
    control = torch.zeros(1, 3, 64, 64)
    control[..., 20:24, 10:50] = 1
    batch = EditBatch(source=to_unit_range(golden["photo"])[None], name=["a"], control=control)
    latents = []
    edited = sample(
        editor, batch, Sampling(), [torch.Generator().manual_seed(7)], lambda step, x, clean: latents.append(x)
    )
    assert error(latents[-1], golden["latents"]) < 1e-5
    assert error(edited[0], golden["edited"]) < 1e-5
