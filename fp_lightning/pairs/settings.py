"""Settings of pair building: times, sizes, estimators and filters."""

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
    """Settings of pair building.

    The paper (section 3.3) uses frames more than 1 s apart, SEA-RAFT and CoTracker-v3. It states nothing else.

    Raises:
        InputError: a side is not a multiple of the track stride, an estimator is unknown, or a number is out of
            range.
    """

    size: tuple[int, int] = (320, 512)  # (height, width) in pixels
    min_gap: float = 1.0  # the frames of a pair are more than this many seconds apart
    max_gap: float = 3.0  # largest distance in seconds, approximately
    pairs_per_video: int = 8  # largest number of pairs per video
    candidates: int = 32  # largest number of candidates per video
    spacing: float = 0.25  # smallest distance of source frames in seconds; smaller in short videos
    step: float = 0.2  # seconds between frames that flow is chained through; 0 for one step
    flow: str = "dis"  # a name in `FLOWS`
    flow_weights: str | None = None  # weight file; None downloads the default weights
    tracker: str = "flow"  # a name in `TRACKERS`
    tracker_weights: str | None = None  # folder with the tracker's code and weights; None downloads them
    accept_license: bool = False  # accept the licence of a tracker that restricts its use
    seed: int = 0  # decides the candidates
    filter: PairFilter = field(default_factory=PairFilter)

    def __post_init__(self) -> None:
        problems = []
        if any(side < 64 or side % TRACK_STRIDE for side in self.size):
            problems.append(f"size must be two multiples of {TRACK_STRIDE}, at least 64, got {self.size}; try 320 512")
        if not 0 <= self.min_gap < self.max_gap:
            problems.append(
                f"max_gap must be greater than min_gap, which is 0 or more, got {self.min_gap:g} and {self.max_gap:g}"
            )
        if min(self.pairs_per_video, self.candidates) < 1 or self.spacing <= 0 or self.step < 0:
            problems.append("pairs_per_video and candidates must be 1 or more, spacing above 0, step 0 or more")
        for kind, name, known in (("flow", self.flow, FLOWS), ("tracker", self.tracker, TRACKERS)):
            if name not in known:
                problems.append(f"{kind} {name} is unknown; known: {', '.join(known)}")
        if problems:
            raise InputError("; ".join(problems))

    @property
    def learned(self) -> bool:
        """Whether the flow estimator or the tracker is a network, which should run on a GPU."""
        return self.flow != "dis" or self.tracker != "flow"

    def load(self) -> None:
        """Load the estimators into this process.

        Raises:
            InputError: weights or a package are missing, or a licence is not accepted.
        """
        flow_estimator(self.flow, self.flow_weights)
        point_tracker(self.tracker, self.tracker_weights, self.accept_license)

    def to_json(self) -> dict[str, Any]:
        """Return the settings that decide the pairs, with JSON types: all except weight paths and licence consent."""
        settings = json.loads(json.dumps(asdict(self)))
        return {k: v for k, v in settings.items() if k not in ("flow_weights", "tracker_weights", "accept_license")}
