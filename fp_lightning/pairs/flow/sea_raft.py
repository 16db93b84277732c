"""SEA-RAFT (Wang, Lipson & Deng 2024), the flow estimator of the paper; the medium model of ptlflow (BSD-3)."""

from __future__ import annotations

import io
import warnings
from contextlib import redirect_stdout
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fp_lightning.errors import InputError
from fp_lightning.pairs.flow.learned import NetworkFlow, choose_device, fill, find_weights

if TYPE_CHECKING:
    from fp_lightning.pairs.flow.estimator import FlowEstimator

MODEL, TRAINED_ON = "sea_raft_m", "spring"


@lru_cache(maxsize=1)
def load_sea_raft(weights: str | None = None, device: str = "auto", trained_on: str = TRAINED_ON) -> FlowEstimator:
    """Load SEA-RAFT (M). The paper does not say which model size and weights it uses.

    Args:
        weights: file of ptlflow's `sea_raft_m` weights; None uses torch hub's cache or downloads them.
        device: "auto", or a torch device.
        trained_on: which weights to download, by ptlflow's names: tartan, chairs, things or sintel, each fine-tuned
            from the one before, or kitti or spring, fine-tuned from sintel. Spring has 540 × 960 px, near the
            paper's size.

    Raises:
        InputError: ptlflow is not installed, `trained_on` is unknown, or the weights cannot be downloaded or do not
            match.
    """
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # ptlflow imports 90 models, which warn about missing packages
        try:
            import ptlflow
        except ImportError as error:
            raise InputError(
                f"SEA-RAFT needs ptlflow ({error}); pip install 'fp-lightning[flow]', or use --flow raft"
            ) from error
        network = ptlflow.get_model(MODEL)
    files = network.pretrained_checkpoints
    if trained_on not in files:
        raise InputError(f"no {MODEL} weights trained on {trained_on}; known: {', '.join(files)}")
    fill(network, find_weights(weights, files[trained_on]))
    network.to(target := choose_device(device))

    def predict(first: Tensor, second: Tensor) -> Tensor:
        bgr = torch.stack([first, second], 1).flip(2)  # ptlflow's models expect OpenCV's channel order
        return network({"images": bgr})["flows"][:, 0]

    return NetworkFlow(predict, target)
