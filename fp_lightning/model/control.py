"""The sparse control encoder (paper, section 3.1, after ControlNeXt) and the injection of its response."""

from __future__ import annotations

import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import Downsample2D, ResnetBlock2D
from torch import Tensor, nn

INJECTION_FACTOR = 0.2  # the released model's; near 1.0 is advised for dense control images
_TIME_CHANNELS, _TIME_WIDTH = 128, 256


class ControlEncoder(ModelMixin, ConfigMixin):
    """Encodes a control image [b, 3, h, w] in [0, 1] into a response [b, out_channels, h/8, w/8].

    The defaults are the released model's, with its parameter names: 3,526,400 parameters. No layer starts at zero.
    Instead, the cross-normalisation of `inject` scales the response to the U-Net's features.

    Args:
        widths: channels of the stem and of the two residual stages.
        out_channels: channels of the U-Net's first block.
    """

    @register_to_config
    def __init__(self, widths: tuple[int, int, int] = (64, 128, 256), out_channels: int = 320) -> None:
        super().__init__()
        stem, middle, deep = widths
        self.time_proj = Timesteps(_TIME_CHANNELS, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(_TIME_CHANNELS, _TIME_WIDTH)
        self.embedding = nn.Sequential(
            nn.Conv2d(3, stem, 3, stride=2, padding=1),
            nn.GroupNorm(2, stem),
            nn.ReLU(),
            nn.Conv2d(stem, stem, 3, padding=1),
            nn.GroupNorm(2, stem),
            nn.ReLU(),
            nn.Conv2d(stem, middle, 3, padding=1),
            nn.GroupNorm(2, middle),
            nn.ReLU(),
        )
        self.down_res = nn.ModuleList(
            ResnetBlock2D(in_channels=i, out_channels=o, temb_channels=_TIME_WIDTH, groups=groups)
            for i, o, groups in ((middle, middle, 4), (middle, deep, 8))
        )
        self.down_sample = nn.ModuleList(
            Downsample2D(channels, use_conv=True, out_channels=channels, padding=1, name="op")
            for channels in (middle, deep)
        )
        self.mid_convs = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Conv2d(deep, deep, 3, padding=1),
                    nn.ReLU(),
                    nn.GroupNorm(8, deep),
                    nn.Conv2d(deep, deep, 3, padding=1),
                    nn.GroupNorm(8, deep),
                ),
                nn.Conv2d(deep, out_channels, 1),
            ]
        )

    def forward(self, control: Tensor, c_noise: Tensor) -> Tensor:
        """Encode a control image.

        Args:
            control: [b, 3, h, w] in [0, 1].
            c_noise: continuous timesteps [b], ¼ ln σ.

        Returns:
            The response [b, out_channels, h/8, w/8].
        """
        embedding = self.time_embedding(self.time_proj(c_noise).to(control.dtype))
        x = self.embedding(control)
        for res, down in zip(self.down_res, self.down_sample, strict=True):
            x = down(res(x, embedding))
        return self.mid_convs[1](self.mid_convs[0](x) + x)


def inject(features: Tensor, response: Tensor, scale: Tensor) -> Tensor:
    """Return `features` plus the cross-normalised `response` (ControlNeXt, section 3.3).

    The response is normalised, at its full resolution, to the mean and standard deviation of the features over
    (c, h, w). Then it is average-pooled to the size of the features.

    Args:
        features: [n, c, h, w], the output of the U-Net's first block after its downsampler.
        response: [n, c, H, W], the output of the control encoder.
        scale: [n], factor per image. 0 leaves the features unchanged.
    """
    dims = (1, 2, 3)
    mean, std = features.mean(dims, keepdim=True), features.std(dims, keepdim=True)
    response_mean, response_std = response.mean(dims, keepdim=True), response.std(dims, keepdim=True)
    response = (response - response_mean) * (std / (response_std + 1e-5)) + mean
    response = F.adaptive_avg_pool2d(response, (features.shape[-2], features.shape[-1]))
    return features + response * scale.to(features.dtype)[:, None, None, None]
