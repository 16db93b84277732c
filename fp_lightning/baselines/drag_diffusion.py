"""DragDiffusion (Shi et al. 2024): optimise a noisy latent until the features at the handles reach their targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fp_lightning.baselines.example import Example
from fp_lightning.baselines.lora import LoraSettings, one_image_lora
from fp_lightning.baselines.mutual import mutual_attention
from fp_lightning.baselines.stable_diffusion import Ddim, StableDiffusion, up_features

LORA = LoraSettings(rank=16, steps=80, learning_rate=5e-4, batch=4, crop=True)
REACHED = 2.0  # feature pixels between a handle and its target
Features = Callable[[Tensor], tuple[Tensor, Tensor]]  # x → (the step below it, features [1, c, h, w])


@dataclass
class DragDiffusion:
    """Edit a photo by drags. Features are those of up block 2, resized to half of the photo.

    Attributes:
        sd: Stable Diffusion 1.x.
        steps: noise levels of the whole schedule.
        strength: share of the levels up to which the photo is inverted.
        iterations: most steps of the optimisation.
        learning_rate: of Adam on the latent.
        motion_radius: of the patches that are moved, in feature pixels.
        track_radius: of the search for a handle, in feature pixels.
        keep: weight of the change outside of the region, λ.
        lora: adapters trained on the photo.
    """

    sd: StableDiffusion
    steps: int = 50
    strength: float = 0.7
    iterations: int = 80
    learning_rate: float = 0.01
    motion_radius: int = 1
    track_radius: int = 3
    keep: float = 0.1
    lora: LoraSettings = LORA

    def cost(self, example: Example) -> int:
        """Return the most U-Net evaluations of one sample, those of training included."""
        count = round(self.strength * self.steps)
        return self.lora.steps * self.lora.batch + count + 1 + self.iterations + 2 * count

    def __call__(self, example: Example, generator: torch.Generator) -> Tensor:
        """Return the edited photo [3, H, W] in [-1, 1]."""
        sd, context, ddim = self.sd, self.sd.embed(), Ddim(self.steps)
        count, size = round(self.strength * self.steps), example.size
        assert example.points is not None and example.region is not None
        points = (example.points / 2).round().flip(1).unflatten(1, (2, 2))  # [p, (target, handle), (y, x)]
        with one_image_lora(sd, example.photo, context, self.lora, generator):
            predict = sd.predictor(context)
            with torch.no_grad():
                source = ddim.invert(sd.encode(example.photo), predict, count)[-1]
            timestep = ddim.timesteps[-count]

            def features(x: Tensor) -> tuple[Tensor, Tensor]:
                with up_features(sd.unet, 2) as kept:
                    noise = predict(x.to(sd.unet.dtype), timestep)
                resized = F.interpolate(kept[0].float(), (size[0] // 2, size[1] // 2), mode="bilinear")
                return ddim.step(x, noise.float(), timestep), resized

            free = F.interpolate(example.region[None].float(), source.shape[-2:], mode="nearest").to(source.device)
            moved = self.optimise(source.float(), features, points[:, 1], points[:, 0], free)
            with torch.no_grad(), mutual_attention(sd.unet):
                both = torch.cat([source, moved.to(source)])
                return sd.decode(ddim.sample(both, predict, count)[1:])

    def optimise(self, x: Tensor, features: Features, handles: Tensor, targets: Tensor, free: Tensor) -> Tensor:
        """Return x [1, c, h, w] after the optimisation.

        Args:
            x: the inverted latent, float32.
            features: see `Features`.
            handles: [p, 2] (y, x) in feature pixels.
            targets: as `handles`.
            free: 1 where the latent may change, [1, 1, h, w]; all zeros switch the term of the background off.
        """
        with torch.no_grad():
            below, first = features(x)
        x = x.clone().requires_grad_(True)
        optimizer, start = torch.optim.Adam([x], self.learning_rate), handles.clone()
        keep = self.keep if free.any() else 0.0
        for iteration in range(self.iterations):
            with torch.enable_grad():
                changed, now = features(x)
                if iteration:
                    handles = track(first, now.detach(), start, handles, self.track_radius)
                if bool(((handles - targets).norm(dim=1) < REACHED).all()):
                    break
                loss = motion_loss(now, handles, targets, self.motion_radius)
                if keep:
                    loss = loss + keep * ((changed - below) * (1 - free)).abs().sum()
                (gradient,) = torch.autograd.grad(loss, x)
            x.grad = gradient
            optimizer.step()
        return x.detach()


def track(first: Tensor, now: Tensor, start: Tensor, handles: Tensor, radius: int) -> Tensor:
    """Find the features of the first handles around the current ones, by L1 distance: [p, 2] (y, x).

    Args:
        first: features [1, c, h, w] before the optimisation.
        now: features now.
        start: first handles [p, 2] (y, x).
        handles: current handles.
        radius: of the search in pixels; it ends at the border.
    """
    found = []
    for (y0, x0), (y, x) in zip(start.int().tolist(), handles.int().tolist(), strict=True):
        top, left = max(0, y - radius), max(0, x - radius)
        window = now[0, :, top : y + radius + 1, left : x + radius + 1]
        distance = (first[0, :, y0, x0, None, None] - window).abs().sum(0)
        row, column = divmod(int(distance.argmin()), distance.shape[1])
        found.append((top + row, left + column))
    return torch.tensor(found, dtype=handles.dtype)


def motion_loss(now: Tensor, handles: Tensor, targets: Tensor, radius: int) -> Tensor:
    """Return the loss that moves patches one pixel towards their targets. Handles that are there do not count.

    Each handle adds (2r + 1)² times the mean |f(patch) - f(patch one pixel on)|, the first without gradient.
    """
    loss = now.new_zeros(())
    height, width = now.shape[-2:]
    for handle, target in zip(handles, targets, strict=True):
        if (target - handle).norm() < REACHED:
            continue
        way = (target - handle) / (target - handle).norm()
        y, x = handle.int().tolist()
        rows = torch.arange(max(0, y - radius), min(height, y + radius + 1))
        columns = torch.arange(max(0, x - radius), min(width, x + radius + 1))
        still = now[0][:, rows[:, None], columns].detach()
        moved = bilinear(now[0], rows + way[0], columns + way[1])
        loss = loss + (2 * radius + 1) ** 2 * F.l1_loss(still, moved)
    return loss


def bilinear(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Interpolate an image [c, h, w] at every pair of rows and columns, clamped to it: [c, rows, columns]."""

    def parts(places: Tensor, extent: int) -> tuple[Tensor, Tensor, Tensor]:
        low = places.floor().long()
        return low.clamp(0, extent - 1), (low + 1).clamp(0, extent - 1), (places - low).to(image)

    top, bottom, down = parts(rows, image.shape[1])
    left, right, across = parts(columns, image.shape[2])
    down = down[:, None]
    upper = image[:, top[:, None], left] * (1 - across) + image[:, top[:, None], right] * across
    lower = image[:, bottom[:, None], left] * (1 - across) + image[:, bottom[:, None], right] * across
    return upper * (1 - down) + lower * down
