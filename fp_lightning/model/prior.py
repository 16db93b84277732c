"""The interface between an editor and the video diffusion model that it is built on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from fp_lightning.model.condition import Condition
    from fp_lightning.model.matching import Correspondence
    from fp_lightning.model.matching_loss import MatchingForm
    from fp_lightning.model.points import DragPoints


@dataclass
class DeepFeatures:
    """Features of the deeper blocks, kept from one network call for the next ones.

    DeepCache (Ma et al. 2023, arXiv 2312.00858): between neighbouring noise levels deep features change little.
    """

    features: Tensor | None = None  # [b · 2, c, h, w]
    reuse: bool = False  # the next call reuses the features; otherwise it runs in full and replaces them


@dataclass
class NetworkInputs:
    """What an editor adds to a call of the prior's network."""

    response: Tensor | None = None  # [b, f, c, h, w] of the control encoder; f = 1: target frame alone, 2: both
    response_scale: Tensor | None = None  # [b] factor of the response
    points: DragPoints | None = None  # tokens to copy from the source to the target frame
    correspondence: Correspondence | None = None  # requests the matching losses
    matching_form: MatchingForm = "squared"
    deep: DeepFeatures | None = None


class VideoPrior(nn.Module, ABC):
    """A latent video diffusion model with an image condition.

    An editor knows its prior through this interface only. To build on another model, subclass it, and give
    `FramePainter` an instance. Losses, sampling and signals stay as they are.

    Attributes:
        latent_channels: c of the latents.
        stride: pixels per latent, in each direction.
        size_multiple: heights and widths of images are multiples of this, in pixels.
        sigma_range: lowest and highest noise level of the sampling schedule.
        scaling_factor: scaled latents have about unit variance: scaled = scaling_factor · latents.
        noise_augmentation: level of the noise on the conditioning image at inference.
        vae_slicing: encode and decode one sample at a time, which takes less memory.
    """

    latent_channels: int
    stride: int
    size_multiple: int
    sigma_range: tuple[float, float]
    scaling_factor: float
    noise_augmentation: float
    vae_slicing: bool = False

    @property
    @abstractmethod
    def frozen(self) -> tuple[nn.Module, ...]:
        """The parts that never train. They stay in evaluation mode."""

    @abstractmethod
    def settings(self) -> dict[str, object]:
        """Settings that change the network's meaning but no weight's name or shape; checkpoints hold them."""

    @abstractmethod
    def latent_weights(self) -> dict[str, Any]:
        """What `encode` and `embed` depend on: a hash of weights and their type, for latents on disk."""

    @abstractmethod
    def attentions(self) -> dict[str, Any]:
        """The spatial attention layers by name, which hold the matching branches."""

    @abstractmethod
    def encode(self, image: Tensor) -> Tensor:
        """Encode images [b, 3, H, W] in [-1, 1] into latents [b, c, h, w], not scaled."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Decode scaled latents [b, f, c, h, w] into images [b, f, 3, H, W] in [-1, 1]."""

    @abstractmethod
    def embed(self, source: Tensor) -> Tensor:
        """Embed images [b, 3, H, W] in [-1, 1] as tokens [b, n, d] for cross-attention."""

    @abstractmethod
    def micro_conditioning(self, augmentation: Tensor) -> Tensor:
        """Return the numbers [b, k] that go with a two-frame edit at noise augmentation [b]."""

    @abstractmethod
    def noise_label(self, sigma: Tensor) -> Tensor:
        """Return what the network and the control encoder receive for noise levels [b]."""

    @abstractmethod
    def denoise(self, x: Tensor, sigma: Tensor, condition: Condition, inputs: NetworkInputs) -> tuple[Tensor, dict]:
        """Evaluate D(x; σ).

        Args:
            x: noisy scaled latents [b, f, c, h, w].
            sigma: noise levels [b].
            condition: image condition.
            inputs: what the editor adds.

        Returns:
            Clean scaled latents of the shape of `x`, and the matching loss of each layer by name.
        """
