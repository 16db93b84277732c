"""The network's inputs besides the noisy latents, with dropout for training and both halves of guidance."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """Everything that conditions the network, for a batch of b samples."""

    embedding: Tensor  # [b, 1, d] image embedding of the source
    image_latents: Tensor  # [b, c, h, w] unscaled latents of the source after noise augmentation
    added_time_ids: Tensor  # [b, 3]: fps − 1, motion bucket, noise augmentation
    control: Tensor | None  # [k, 3, H, W] in [0, 1]; k < b: images of the last k samples only
    control_valid: Tensor  # bool [b], true where the sample has a control image
    control_scale: Tensor  # [b] factor of the control response and of the dragged tokens
    points: Tensor | None  # [b, p, 4] as (x_src, y_src, x_tgt, y_tgt) in pixels
    points_valid: Tensor | None  # bool [b, p]

    def dropped(self, embedding: Tensor, image_latents: Tensor, control: Tensor) -> Condition:
        """Return a copy with parts set to zero where the masks, bool [b], are true. `control` also drops the points."""

        def zero(x: Tensor, mask: Tensor) -> Tensor:
            return x.masked_fill(mask.view(-1, *[1] * (x.ndim - 1)), 0)

        return replace(
            self,
            embedding=zero(self.embedding, embedding),
            image_latents=zero(self.image_latents, image_latents),
            control_scale=zero(self.control_scale, control),
        )

    def unconditional(self) -> Condition:
        """Return the unconditional half of guidance: no embedding, image latents, control or points."""
        everywhere = torch.ones_like(self.control_scale, dtype=torch.bool)
        return self.dropped(everywhere, everywhere, everywhere)

    @staticmethod
    def cat(first: Condition, second: Condition) -> Condition:
        """Concatenate two conditions along the batch.

        Raises:
            ValueError: control or points are present in only one of them.
        """
        joined: dict[str, Any] = {}
        for f in fields(Condition):
            present = [value for c in (first, second) if (value := getattr(c, f.name)) is not None]
            if len(present) == 1:
                raise ValueError(f"{f.name} is present in one of two conditions; pass both with it or both without")
            joined[f.name] = torch.cat(present) if present else None
        return Condition(**joined)
