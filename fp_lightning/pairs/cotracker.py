"""CoTracker-v3 offline (Karaev et al. 2024), the tracker of the paper, from target to source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fp_lightning.errors import InputError
from fp_lightning.pairs.flow.learned import choose_device, exact_float32, fill, first_line, within_memory

if TYPE_CHECKING:
    from fp_lightning.types import Image

COTRACKER_LICENCE = "CoTracker-v3 (code and weights) is licensed CC-BY-NC 4.0: no commercial use, credit to its authors"
REPOSITORY, ENTRY = "facebookresearch/co-tracker", "cotracker3_offline"
WEIGHTS = ("scaled_offline.pth", "scaled_offline.safetensors")
POINTS = 4096  # tracked in one call: about 5 GB for 15 frames


class CoTracker:
    """Track points from the last frame to the first."""

    def __init__(self, predictor: Callable[..., tuple[Tensor, Tensor]], device: torch.device, points: int = POINTS):
        """
        Args:
            predictor: CoTracker's `CoTrackerPredictor`, on `device`.
            device: where the predictor runs.
            points: number of points per call. It is halved, permanently, when memory runs out.
        """
        self.predictor, self.device, self.points = predictor, device, points

    def __call__(self, frames: Sequence[Image], positions: Tensor) -> tuple[Tensor, Tensor]:
        """Find where points of the last frame are in the first.

        Args:
            frames: the source, the frames between, and the target: uint8 [h, w, 3] each.
            positions: [2, th, tw] in pixels of the target.

        Returns:
            Source positions float32 [2, th, tw] in pixels, and visibility bool [th, tw]: inside the source and not
            occluded.

        Raises:
            InputError: the device's memory is too small even for one point.
        """
        height, width = frames[0].shape[:2]
        video = torch.from_numpy(np.stack(frames)).to(self.device).permute(0, 3, 1, 2)[None].float()
        time = positions.new_full((1, *positions.shape[1:]), len(frames) - 1)
        queries = (
            torch.cat([time, positions - 0.5]).flatten(1).T[None].float()
        )  # CoTracker's pixel centres are at integers
        (sources, seen), self.points = within_memory(lambda most: self._follow(video, queries, most), self.points)
        tracks = sources.T.reshape(positions.shape) + 0.5
        inside = (tracks >= 0).all(0) & (tracks[0] < width) & (tracks[1] < height)
        return tracks, seen.reshape(inside.shape) & inside

    def _follow(self, video: Tensor, queries: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """Track points, at most `most` per call; return positions [n, 2] and visibility [n] in the first frame.

        CoTracker tracks points jointly, so every call gets points from all over the image.
        """
        count = queries.shape[1]
        calls = -(-count // most)
        found, seen = torch.empty(count, 2), torch.empty(count, dtype=torch.bool)
        for part in (slice(first, None, calls) for first in range(calls)):
            with torch.no_grad(), exact_float32():
                tracks, visible = self.predictor(
                    video, queries=queries[:, part].to(self.device), backward_tracking=True
                )
            found[part], seen[part] = tracks[0, 0].cpu(), visible[0, 0].cpu()
        return found, seen


@lru_cache(maxsize=1)
def load_cotracker(weights: str | None = None, device: str = "auto", accept_license: bool = False) -> CoTracker:
    """Load CoTracker-v3 offline through torch hub, which runs its authors' code.

    Args:
        weights: folder with a clone of the repository, and with `scaled_offline.pth` or `.safetensors` in it or in
            its `checkpoints` folder. None uses torch hub's cache and downloads missing files.
        device: "auto", or a torch device.
        accept_license: consent to COTRACKER_LICENCE, which is required.

    Raises:
        InputError: the licence is not accepted, or the code or the weights are missing or do not match.
    """
    if not accept_license:
        raise InputError(f"{COTRACKER_LICENCE}; pass --accept-license, or use --tracker flow")
    with torch.random.fork_rng(devices=[]):  # CoTracker's code seeds torch
        predictor = _from_hub() if weights is None else _from_folder(Path(weights).expanduser())
    return CoTracker(predictor.to(target := choose_device(device)), target)


def _from_hub() -> Any:
    """Load code and weights from torch hub's cache, or download them."""
    try:
        return torch.hub.load(REPOSITORY, ENTRY, verbose=False)
    except Exception as error:  # download, unpacking and the loaded code raise many types
        hub = Path(torch.hub.get_dir())
        raise InputError(
            f"CoTracker's code ({hub / (REPOSITORY.replace('/', '_') + '_main')}) and weights "
            f"({hub / 'checkpoints' / WEIGHTS[0]}) are not both there and cannot be downloaded ({first_line(error)}); "
            "copy them there from a machine with network, where the same command downloads them, "
            f"or pass --tracker-weights FOLDER with a clone of {REPOSITORY} and {WEIGHTS[0]}"
        ) from error


def _from_folder(folder: Path) -> Any:
    """Load code and weights from a folder, see `load_cotracker`."""
    found = [path for name in WEIGHTS for path in (folder / name, folder / "checkpoints" / name) if path.is_file()]
    if not (folder / "hubconf.py").is_file() or not found:
        absent = WEIGHTS[0] if not found else "hubconf.py"
        raise InputError(
            f"no {absent} in {folder}; "
            f"--tracker-weights must be a folder with a clone of {REPOSITORY} and {WEIGHTS[0]} in it"
        )
    try:
        predictor = torch.hub.load(str(folder), ENTRY, source="local", pretrained=False)
    except Exception as error:  # the code in that folder can raise anything
        raise InputError(
            f"the code in {folder} cannot be loaded ({first_line(error)}); clone {REPOSITORY} again"
        ) from error
    fill(predictor.model, found[0])
    return predictor
