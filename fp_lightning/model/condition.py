"""What the network is told besides the noisy latents, its halves for guidance and its dropout for training."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """All that the network is told besides the noisy latents."""

    embedding: Tensor  # [b, 1, d] image embedding of the source
    image_latents: Tensor  # [b, 4, h, w] unscaled latents of the source with a little noise
    added_time_ids: Tensor  # [b, 3]: fps − 1, motion bucket, noise augmentation
    control: Tensor | None  # [b, 3, H, W] in [0, 1]; fewer are those of the last samples, the others have none
    control_valid: Tensor  # bool [b]: the sample has a control image
    control_scale: Tensor  # [b] factor of all that the user drew: the control response and the dragged tokens
    points: Tensor | None  # [b, p, 4] as (x_src, y_src, x_tgt, y_tgt) in pixels
    points_valid: Tensor | None  # bool [b, p]

    def dropped(self, embedding: Tensor, image_latents: Tensor, control: Tensor) -> Condition:
        """The condition with parts zeroed where the bool [b] masks are true; `control` drops the points too."""

        def zero(x: Tensor, mask: Tensor) -> Tensor:
            return x.masked_fill(mask.view(-1, *[1] * (x.ndim - 1)), 0)

        return replace(
            self,
            embedding=zero(self.embedding, embedding),
            image_latents=zero(self.image_latents, image_latents),
            control_scale=zero(self.control_scale, control),
        )

    def unconditional(self) -> Condition:
        """The other half of guidance: no embedding, no image latents, neither control nor points."""
        everywhere = torch.ones_like(self.control_scale, dtype=torch.bool)
        return self.dropped(everywhere, everywhere, everywhere)

    @staticmethod
    def cat(first: Condition, second: Condition) -> Condition:
        """Both in one batch.

        Raises:
            ValueError: control or points are present in one and absent in the other.
        """
        joined: dict[str, Any] = {}
        for f in fields(Condition):
            present = [value for c in (first, second) if (value := getattr(c, f.name)) is not None]
            if len(present) == 1:
                raise ValueError(f"{f.name} is present in one of two conditions")
            joined[f.name] = torch.cat(present) if present else None
        return Condition(**joined)
