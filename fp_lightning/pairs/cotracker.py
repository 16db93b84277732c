"""CoTracker-v3, offline (Karaev et al. 2024): the paper's tracks, from target to source."""

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
POINTS = 4096  # followed in one call: some 5 GB for 15 frames


class CoTracker:
    """Follows points from the last of some frames to the first."""

    def __init__(self, predictor: Callable[..., tuple[Tensor, Tensor]], device: torch.device, points: int = POINTS):
        """
        Args:
            predictor: CoTracker's own interface, on `device`.
            points: followed in one call; halved for good where they do not fit in memory.
        """
        self.predictor, self.device, self.points = predictor, device, points

    def __call__(self, frames: Sequence[Image], positions: Tensor) -> tuple[Tensor, Tensor]:
        """Where what is seen in the last frame is in the first.

        Args:
            frames: the source, what lies between, and the target.
            positions: [2, th, tw] in pixels, in the target.

        Returns:
            Positions float32 [2, th, tw] in the source, and whether they are inside it and seen there: bool [th, tw].

        Raises:
            InputError: one point does not fit in the device's memory.
        """
        height, width = frames[0].shape[:2]
        video = torch.from_numpy(np.stack(frames)).to(self.device).permute(0, 3, 1, 2)[None].float()
        time = positions.new_full((1, *positions.shape[1:]), len(frames) - 1)
        queries = torch.cat([time, positions - 0.5]).flatten(1).T[None].float()  # its pixel centres are whole numbers
        (found, seen), self.points = within_memory(lambda most: self._follow(video, queries, most), self.points)
        tracks = found.T.reshape(positions.shape) + 0.5
        inside = (tracks >= 0).all(0) & (tracks[0] < width) & (tracks[1] < height)
        return tracks, seen.reshape(inside.shape) & inside

    def _follow(self, video: Tensor, queries: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """Positions [n, 2] and visibility [n] in the first frame, on the CPU.

        Points of one call help each other, so every call takes its share from everywhere.
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
    """CoTracker-v3 offline, through torch hub, which runs its authors' code.

    Args:
        weights: a folder with a clone of the repository and, in it or in its `checkpoints`, `scaled_offline.pth`
            or `.safetensors`; None takes both from torch hub's cache, where its code fetches what is not there yet.
        device: "auto", or a torch device.
        accept_license: see COTRACKER_LICENCE.

    Raises:
        InputError: the licence is not accepted, or the code or the weights are missing or do not fit.
    """
    if not accept_license:
        raise InputError(f"{COTRACKER_LICENCE}; pass --accept-license, or use --tracker flow")
    with torch.random.fork_rng(devices=[]):  # its code seeds torch
        predictor = _from_hub() if weights is None else _from_folder(Path(weights).expanduser())
    return CoTracker(predictor.to(place := choose_device(device)), place)


def _from_hub() -> Any:
    try:
        return torch.hub.load(REPOSITORY, ENTRY, verbose=False)
    except Exception as error:  # the network, the archive and the code in it each raise their own kinds
        hub = Path(torch.hub.get_dir())
        raise InputError(
            f"CoTracker's code ({hub / (REPOSITORY.replace('/', '_') + '_main')}) and weights "
            f"({hub / 'checkpoints' / WEIGHTS[0]}) are not both there and cannot be fetched ({first_line(error)}); "
            "copy them there from a machine with network, where the same command fetches them, "
            f"or pass --tracker-weights FOLDER with a clone of {REPOSITORY} and {WEIGHTS[0]}"
        ) from error


def _from_folder(folder: Path) -> Any:
    found = [path for name in WEIGHTS for path in (folder / name, folder / "checkpoints" / name) if path.is_file()]
    if not (folder / "hubconf.py").is_file() or not found:
        absent = WEIGHTS[0] if not found else "hubconf.py"
        raise InputError(
            f"no {absent} in {folder}; "
            f"--tracker-weights is a folder with a clone of {REPOSITORY} and {WEIGHTS[0]} in it"
        )
    try:
        predictor = torch.hub.load(str(folder), ENTRY, source="local", pretrained=False)
    except Exception as error:  # whatever the code in that folder raises
        raise InputError(
            f"the code in {folder} cannot be loaded ({first_line(error)}); clone {REPOSITORY} again"
        ) from error
    fill(predictor.model, found[0])
    return predictor
