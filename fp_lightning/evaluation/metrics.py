"""How close edited images come to the true targets, beside the floor of returning the source unchanged.

SSIM, LPIPS and CLIP-FID are the paper's metrics (Table 1). PSNR where something moves is the number that
tells an edit from no edit: over the whole image, a copy of the source already scores well. Everything is
measured on images rounded to 8 bits, as users see them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from fp_lightning.errors import InputError
from fp_lightning.evaluation.adherence import (
    FARTHEST,
    FlowTracker,
    drag_distance,
    is_sketch,
    sketch_distance,
    tracked_drags,
)
from fp_lightning.evaluation.bootstrap import bootstrap_means, interval
from fp_lightning.evaluation.clip_fid import clip_fid, clip_fid_spread
from fp_lightning.evaluation.perceptual import (
    CLIP_MODEL,
    CLIP_WIDTH,
    MissingWeights,
    clip_features,
    load_clip,
    load_lpips,
    lpips_maps,
    lpips_over,
)
from fp_lightning.evaluation.scores import EXACT, mean_over, psnr, ssim_map
from fp_lightning.pairs.flow.registry import flow_estimator
from fp_lightning.types import MOVING_WIDTH, EditBatch, to_uint8, to_unit_range

COPY = "_copy_source"
REGIONAL = tuple(f"{name}_{region}" for name in ("psnr", "ssim", "lpips") for region in ("moving", "background"))
PER_IMAGE = ("ssim", "psnr", "lpips", *REGIONAL, "fidelity", "drag_distance", "sketch_distance")
METRICS = (*PER_IMAGE, "clip_fid")
ASKED = ("drag_distance", "sketch_distance")  # measured by estimates, which the true target calibrates
TRUTH = "_target"
SCORES = (*PER_IMAGE, *(name + COPY for name in PER_IMAGE), *(name + TRUTH for name in ASKED))
GAIN = "psnr_moving_gain"
NO_TARGET = "there are no targets to compare with"
UNDEFINED = {  # why a score that needs no network may be undefined for every image
    "moving": "no image has a pixel known to be moving",
    "background": "no image has a pixel known to be background",
    "drag_distance": "no image has points, or tracks of something that moved",
    "sketch_distance": "no image has a sketch",
}


class EditMetrics(Metric):
    """Scores of edited images against their targets; `compute()` is the content of metrics.json.

    Of every image, then averaged over images: SSIM, PSNR and LPIPS against the target, over all of it, over what
    moves in the true pair ("moving") and over the rest ("background"); an image without such pixels is left out
    (`n_moving` counts the others). `fidelity` is 1 − LPIPS against the source (DragDiffusion, Shi et al. 2024).
    `drag_distance` is how far handles are found from where they should be, of the drags given, or of all that
    truly moved where none are; `sketch_distance` how far drawn lines and outlines of what the edit moved are apart
    (`fp_lightning.evaluation.adherence`). CLIP-FID compares the two sets of images and needs two or more; it is
    biased upwards when they are few, so compare equal n.

    Every name that ends in `_copy_source` is the same score for the source returned unchanged, and
    `psnr_moving_gain` is the lead over it, in dB. Both distances rest on estimated motion: `drag_distance_target` and
    `sketch_distance_target` are those of the true target, below which no difference means anything. `intervals`
    holds 95 % bootstrap intervals over images: of the mean by percentiles, of CLIP-FID, whose resamples are biased,
    the value ± 1.96 of their standard deviation.

    Scores are kept by image, in an order that depends on the names alone, so that any split over batches and
    processes gives one result, to the rounding of the networks' float32; an image that comes twice counts once.
    LPIPS and CLIP run once their weights are on disk; else they are None and `not_measured` says why. The networks
    are cached per process, outside the module tree: no checkpoint, optimiser or copy ever holds them.

    Args:
        clip_model: folder or hub name of CLIP ViT-B/32.
        download: fetch missing weights on the first update instead of leaving the metric unmeasured.
        flow: estimator for drags and sketches, one of `fp_lightning.pairs.flow.registry.FLOWS`.
        tracker: finds dragged points, by "flow" or by the features of Stable Diffusion ("dift").
        dift_model: folder or hub name of Stable Diffusion 2.1, for "dift".
        require: names, of "lpips" and "clip_fid", that must be measured.

    Raises:
        InputError: an unknown name; from `update` and `compute`, something required cannot be measured.
    """

    full_state_update = False
    rows: list[Tensor]  # [b, 2 · scores] in the order of SCORES
    keys: list[Tensor]  # int64 [b] of their names
    features: list[Tensor]  # [b, 3 · 512]: edited, source, target
    feature_keys: list[Tensor]  # int64 [b]

    def __init__(
        self,
        clip_model: str = CLIP_MODEL,
        download: bool = False,
        flow: str = "dis",
        tracker: Literal["flow", "dift"] = "flow",
        dift_model: str = "stabilityai/stable-diffusion-2-1",
        require: Sequence[str] = (),
    ) -> None:
        super().__init__()
        unknown = set(require) - {"lpips", "clip_fid"}
        if unknown:
            raise InputError(f"require takes lpips and clip_fid, got {', '.join(sorted(unknown))}")
        if tracker not in ("flow", "dift"):
            raise InputError(f"tracker must be flow or dift, got {tracker!r}")
        self.clip_model, self.download, self.require = clip_model, download, tuple(require)
        self.flow, self.tracker, self.dift_model = flow, tracker, dift_model
        self._missing: dict[str, str] = {}
        self._per_sample: dict[str, dict[str, float]] = {}
        for name in ("rows", "keys", "features", "feature_keys"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, edited: Tensor, batch: EditBatch) -> None:
        """Adds images.

        Args:
            edited: float [b, 3, h, w] in [-1, 1].
            batch: without `target`, as drag benchmarks have none, only fidelity and distances are measured;
                without `moving`, the scores by region leave its images out.

        Raises:
            ValueError: source or target have another shape.
        """
        for name, image in (("source", batch.source), ("target", batch.target)):
            if image is not None and image.shape != edited.shape:
                raise ValueError(
                    f"edited images {list(edited.shape)} need a {name} of their shape, got {list(image.shape)}"
                )
        with torch.autocast(edited.device.type, enabled=False), torch.no_grad():
            image, source = to_uint8(edited), to_uint8(batch.source)
            target = None if batch.target is None else to_uint8(batch.target)
            scores = self._scores(image, source, target, batch)
            scores |= {k + COPY: v for k, v in self._scores(source, source, target, batch).items()}
            unknown = torch.full((2, len(batch)), torch.nan, device=edited.device)
            truth = unknown if target is None else self._adherence(target, source, batch)
            scores |= {name + TRUTH: values for name, values in zip(ASKED, truth, strict=True)}
            keys = torch.tensor([name_key(name) for name in batch.name], device=edited.device)
            if target is not None:
                self._add_features([image, source, target], keys)
        table = torch.stack([scores[name].to(EXACT) for name in SCORES], dim=1)
        self.rows.append(table)
        self.keys.append(keys)
        for name, row in zip(batch.name, table.tolist(), strict=True):
            self._per_sample[name] = {key: x for key, x in zip(SCORES, row, strict=True) if x == x}

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """A process that has seen nothing joins in with no rows of the right width."""
        widths = {"rows": (len(SCORES), EXACT), "features": (3 * CLIP_WIDTH, torch.float32)}
        for name in ("rows", "keys", "features", "feature_keys"):
            if not getattr(self, name):
                width, dtype = widths.get(name, (None, torch.int64))
                shape = (0,) if width is None else (0, width)
                setattr(self, name, [torch.zeros(shape, dtype=dtype, device=self.device)])
        super().sync(*args, **kwargs)

    def compute(self) -> dict[str, Any]:
        """Scores by name over all processes; None where `not_measured` has the reason."""
        table, features = self.table(), self.feature_table()
        n, n_clip = len(table), len(features)
        counts = dict(zip(SCORES, (~table.isnan()).sum(0).tolist(), strict=True))
        means = dict(zip(SCORES, table.nanmean(0).tolist(), strict=True)) if n else {}
        reasons = self._reasons(n, n_clip, counts)
        for name in self.require:
            if n and name in reasons:
                raise InputError(f"{name} is required and not measured: {reasons[name]}")

        result: dict[str, Any] = {"n": n, "n_moving": int(counts["psnr_moving"])}
        for which, suffix in enumerate(("", COPY)):
            for name in METRICS:
                if name in reasons:
                    result[name + suffix] = None
                else:
                    fid = name == "clip_fid"
                    result[name + suffix] = clip_fid(features, which) if fid else means[name + suffix]
        for name in ASKED:
            result[name + TRUTH] = None if name in reasons or not counts[name + TRUTH] else means[name + TRUTH]
            reasons.setdefault(name + TRUTH, reasons.get(name, NO_TARGET))
        if "psnr_moving" in reasons:
            result[GAIN], reasons[GAIN] = None, reasons["psnr_moving"]
        else:
            result[GAIN] = result["psnr_moving"] - result["psnr_moving" + COPY]
        result["intervals"] = self._intervals(table, features, result)
        not_measured = {key: reasons[key.removesuffix(COPY)] for key, value in result.items() if value is None}
        return {**result, "not_measured": not_measured}

    def table(self) -> Tensor:
        """Scores [n, len(SCORES)] by image, NaN where one is undefined; the order depends on the names alone."""
        rows = dim_zero_cat(self.rows) if len(self.rows) else torch.zeros(0, len(SCORES), dtype=EXACT)
        return _ordered(rows, self.keys)

    def feature_table(self) -> Tensor:
        """CLIP's features [n, 3, 512] of edited, source and target, in the same order."""
        empty = torch.zeros(0, 3 * CLIP_WIDTH)
        rows = dim_zero_cat(self.features) if len(self.features) else empty
        return _ordered(rows, self.feature_keys).unflatten(1, (3, CLIP_WIDTH)).to(EXACT)

    def per_sample(self) -> dict[str, dict[str, float]]:
        """Scores of this process's images since the last reset, by image name, then by score."""
        return self._per_sample

    def reset(self) -> None:
        super().reset()
        self._per_sample = {}

    def _reasons(self, n: int, n_clip: int, counts: dict[str, int]) -> dict[str, str]:
        """Why which of METRICS has no value."""
        if n == 0:
            return dict.fromkeys(METRICS, "no image was evaluated")
        elsewhere = "its weights are missing in another process"
        reasons: dict[str, str] = {}
        targets = counts["psnr"] > 0
        for name in PER_IMAGE:
            if (name.startswith("lpips") or name == "fidelity") and counts["fidelity"] < n:
                reasons[name] = self._missing.get("lpips", elsewhere)
            elif counts[name] == 0:
                region = name.rpartition("_")[2]
                reasons[name] = UNDEFINED.get(name) or (UNDEFINED.get(region) if targets else None) or NO_TARGET
        if not targets:
            reasons["clip_fid"] = NO_TARGET
        elif n_clip < n:
            reasons["clip_fid"] = self._missing.get("clip_fid", elsewhere)
        elif n < 2:
            reasons["clip_fid"] = "a Fréchet distance needs two images or more"
        return reasons

    def _intervals(self, table: Tensor, features: Tensor, result: dict[str, Any]) -> dict[str, list[float]]:
        """95 % intervals of all that is measured, by name."""
        columns = [name for name in SCORES if result.get(name) is not None]
        if len(table) < 2:
            return {}
        index = [SCORES.index(name) for name in columns]
        means = bootstrap_means(table[:, index])
        found = {name: list(interval(means[:, i])) for i, name in enumerate(columns)}
        if result[GAIN] is not None:
            ours, copy = (columns.index("psnr_moving" + suffix) for suffix in ("", COPY))
            found[GAIN] = list(interval(means[:, ours] - means[:, copy]))
        for which, suffix in enumerate(("", COPY)):
            value = result["clip_fid" + suffix]
            if value is not None and len(features) > 2:
                spread = 1.96 * clip_fid_spread(features, which)
                found["clip_fid" + suffix] = [max(0.0, value - spread), value + spread]
        return found

    def _scores(self, image: Tensor, source: Tensor, target: Tensor | None, batch: EditBatch) -> dict[str, Tensor]:
        """PER_IMAGE scores [b] of uint8 images; NaN where one is undefined or not measured."""
        undefined = torch.full((len(image),), torch.nan, dtype=EXACT, device=image.device)
        scores = dict.fromkeys(PER_IMAGE, undefined)
        network = self._network("lpips", image.device)
        if target is not None:
            x, y = (z.to(EXACT) / 255 for z in (image, target))
            similar, maps = ssim_map(x, y), []
            scores |= {"ssim": mean_over(similar), "psnr": psnr(x, y)}
            if network is not None:
                maps = lpips_maps(network, to_unit_range(image), to_unit_range(target))
                scores["lpips"] = lpips_over(maps)
            regions = {} if batch.moving is None else {"moving": batch.moving, "background": ~batch.moving}
            for region, mask in regions.items():
                scores[f"psnr_{region}"] = psnr(x, y, mask)
                scores[f"ssim_{region}"] = mean_over(similar, mask)
                if maps:
                    scores[f"lpips_{region}"] = lpips_over(maps, mask)
        if network is not None:
            pair = to_unit_range(image), to_unit_range(source)
            scores["fidelity"] = 1 - lpips_over(lpips_maps(network, *pair))
        return {**scores, **dict(zip(ASKED, self._adherence(image, source, batch), strict=True))}

    def _adherence(self, images: Tensor, sources: Tensor, batch: EditBatch) -> Tensor:
        """Drag and sketch distances [2, b] of uint8 images, NaN where nothing of the kind was asked for."""
        same = images is sources
        rows = [self._followed(images[i], sources[i], batch, i, same) for i in range(len(images))]
        return torch.tensor(rows, dtype=EXACT, device=images.device).T

    def _followed(self, image: Tensor, source: Tensor, batch: EditBatch, index: int, same: bool) -> tuple[float, float]:
        size, undefined = (source.shape[-2], source.shape[-1]), float("nan")
        drags = torch.zeros(0, 4)
        if batch.points is not None:
            drags = batch.points[index].float().cpu()
            drags = drags if batch.points_valid is None else drags[batch.points_valid[index].cpu()]
        if not len(drags) and batch.tracks is not None and batch.visible is not None:
            drags = tracked_drags(batch.tracks[index].float().cpu(), batch.visible[index].cpu(), size)
        control = None if batch.control is None else batch.control[index].cpu()
        drawn = control[0] > 0 if control is not None and is_sketch(control) else None
        if same:  # nothing has moved, which needs no estimate
            stayed = (drags[:, :2] - drags[:, 2:]).norm(dim=1).mean().item() * MOVING_WIDTH / size[1]
            return stayed if len(drags) else undefined, undefined if drawn is None else FARTHEST
        before, after, estimator = source.cpu(), image.cpu(), flow_estimator(self.flow)
        return (
            drag_distance(self._point_tracker(image.device), before, after, drags) if len(drags) else undefined,
            undefined if drawn is None else sketch_distance(estimator, before, after, drawn),
        )

    def _point_tracker(self, device: torch.device) -> Any:
        if self.tracker == "flow":
            return FlowTracker(flow_estimator(self.flow))
        from fp_lightning.evaluation.dift import load_dift

        return load_dift(self.dift_model, device, self.download)

    def _add_features(self, images: list[Tensor], keys: Tensor) -> None:
        network = self._network("clip_fid", images[0].device)
        if network is not None:
            self.features.append(torch.cat([clip_features(network, x) for x in images], 1))
            self.feature_keys.append(keys)

    def _network(self, name: str, device: torch.device) -> Any:
        """The network behind LPIPS or CLIP-FID; None, with the reason kept, without its weights."""
        if name in self._missing:
            return None
        try:
            if name == "lpips":
                return load_lpips(device, self.download)
            return load_clip(self.clip_model, device, self.download)
        except MissingWeights as error:
            if name in self.require:
                raise InputError(f"{name} is required and not measured: {error}") from error
            self._missing[name] = str(error)
            return None


def name_key(name: str) -> int:
    """63 bits that stand for an image's name in every process."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def _ordered(rows: Tensor, keys: list[Tensor]) -> Tensor:
    """The rows by key, one of each."""
    if not len(rows):
        return rows
    known = dim_zero_cat(keys).cpu()
    kept, inverse = torch.unique(known, return_inverse=True)
    first = torch.full((len(kept),), len(known)).scatter_reduce(0, inverse, torch.arange(len(known)), "amin")
    return rows.cpu()[first]
