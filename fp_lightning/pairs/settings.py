"""Settings that decide which pairs are made."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from fp_lightning.errors import InputError
from fp_lightning.pairs.filters import PairFilter
from fp_lightning.pairs.flow.registry import FLOWS, flow_estimator
from fp_lightning.pairs.tracks import TRACKERS, point_tracker
from fp_lightning.types import TRACK_STRIDE


@dataclass(frozen=True)
class PairSettings:
    """What pairs are made. The paper: frames more than 1 s apart, SEA-RAFT, CoTracker-v3; all else is not stated.

    Raises:
        InputError: a side is no multiple of the track stride, or a name or a range is unknown.
    """

    size: tuple[int, int] = (320, 512)  # (height, width) in pixels
    min_gap: float = 1.0  # the frames of a pair are more seconds apart than this
    max_gap: float = 3.0  # and no more than about this
    pairs_per_video: int = 8  # kept at most
    candidates: int = 32  # tried at most
    spacing: float = 0.25  # seconds between the source frames of any two candidates at least, less in short videos
    step: float = 0.2  # seconds between the frames through which flow is chained; 0 for one long jump
    flow: str = "dis"
    flow_weights: str | None = None  # a file, in place of the estimator's own download
    tracker: str = "flow"
    tracker_weights: str | None = None  # a folder with the tracker's code and weights
    accept_license: bool = False  # of a tracker whose licence restricts its use
    seed: int = 0
    filter: PairFilter = field(default_factory=PairFilter)

    def __post_init__(self) -> None:
        problems = []
        if any(side < 64 or side % TRACK_STRIDE for side in self.size):
            problems.append(f"size must be two multiples of {TRACK_STRIDE} from 64 on, got {self.size}; try 320 512")
        if not 0 <= self.min_gap < self.max_gap:
            problems.append(f"max_gap must exceed min_gap, got {self.min_gap:g} and {self.max_gap:g}")
        if min(self.pairs_per_video, self.candidates) < 1 or self.spacing <= 0 or self.step < 0:
            problems.append("pairs_per_video and candidates must be 1 or more, spacing above 0, step 0 or more")
        for kind, name, known in (("flow", self.flow, FLOWS), ("tracker", self.tracker, TRACKERS)):
            if name not in known:
                problems.append(f"{kind} {name} is unknown; known: {', '.join(known)}")
        if problems:
            raise InputError("; ".join(problems))

    @property
    def learned(self) -> bool:
        """Whether an estimator is a network, which wants a GPU."""
        return self.flow != "dis" or self.tracker != "flow"

    def load(self) -> None:
        """Loads the estimators of this process. Raises InputError: weights, a package or a consent are missing."""
        flow_estimator(self.flow, self.flow_weights)
        point_tracker(self.tracker, self.tracker_weights, self.accept_license)

    def stated(self) -> dict[str, Any]:
        """As JSON gives it back; what decides the pairs, so neither where weights lie nor a consent."""
        settings = json.loads(json.dumps(asdict(self)))
        return {k: v for k, v in settings.items() if k not in ("flow_weights", "tracker_weights", "accept_license")}
