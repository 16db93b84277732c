"""Score edited images against the true targets, with the unchanged source as the baseline.

SSIM, LPIPS and CLIP-FID are the paper's metrics (Table 1). PSNR in the moving region tells an edit from no edit: over
the whole image, a copy of the source already scores well. All images are rounded to 8 bits before they are measured,
as users see them.
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
ESTIMATED = ("drag_distance", "sketch_distance")  # rest on estimated motion; the true target's score calibrates them
TRUTH = "_target"
SCORES = (*PER_IMAGE, *(name + COPY for name in PER_IMAGE), *(name + TRUTH for name in ESTIMATED))
GAIN = "psnr_moving_gain"
NO_TARGET = "there are no targets"
UNDEFINED = {  # why a score that needs no network is undefined for all images
    "moving": "no image has a pixel known to be moving",
    "background": "no image has a pixel known to be background",
    "drag_distance": "no image has points or tracks that move",
    "sketch_distance": "no image has a sketch",
}


class EditMetrics(Metric):
    """Scores of edited images against their targets. `compute()` returns the content of metrics.json.

    SSIM, PSNR and LPIPS compare each image with its target: over the whole image, over what moves in the true pair
    ("moving") and over the rest ("background"). An image without such a region is left out; `n_moving` counts the
    images with motion. `fidelity` is 1 − LPIPS against the source (DragDiffusion, Shi et al. 2024). `drag_distance`
    is the mean distance from the target of each drag to where its handle is found; without drags, the true tracks
    that move are used. `sketch_distance` is the chamfer distance between drawn lines and the outlines of what the
    edit moved (see `fp_lightning.evaluation.adherence`). All of these are averaged over images. CLIP-FID compares the
    two sets of images and needs at least two; it is biased upwards for few images, so compare equal n.

    Each score has a twin that ends in `_copy_source`: the score of the unchanged source. `psnr_moving_gain` is the
    difference of the two in dB. Both distances rest on estimated motion. `drag_distance_target` and
    `sketch_distance_target` are the distances of the true target; smaller differences mean nothing. `intervals` holds
    95 % bootstrap intervals over images: percentiles of the mean, or for CLIP-FID, whose resamples are biased, the
    value ± 1.96 standard deviations.

    Scores are kept per image, in an order that depends on the names alone. Any split over batches and processes
    therefore gives the same result, up to the float32 rounding of the networks. An image that comes twice counts once.
    LPIPS and CLIP-FID need weights on disk; without them they are None and `not_measured` gives the reason. The
    networks are cached per process outside the module tree, so that no checkpoint, optimiser or copy holds them.

    Args:
        clip_model: folder or hub name of CLIP ViT-B/32.
        download: download missing weights at the first update; otherwise their metrics are not measured.
        flow: flow estimator for drags and sketches, one of `fp_lightning.pairs.flow.registry.FLOWS`.
        tracker: finds dragged points by "flow", or by the features of Stable Diffusion ("dift").
        dift_model: folder or hub name of Stable Diffusion 2.1, for "dift".
        require: which of "lpips" and "clip_fid" must be measured.

    Raises:
        InputError: an argument has an unknown value; from `update` and `compute`, a required metric cannot be measured.
    """

    full_state_update = False
    rows: list[Tensor]  # [b, 2 · scores] in the order of SCORES
    keys: list[Tensor]  # int64 [b]: see `name_key`
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
            raise InputError(f"require takes lpips and clip_fid, got {', '.join(sorted(unknown))}; remove the others")
        if tracker not in ("flow", "dift"):
            raise InputError(f"tracker must be flow or dift, got {tracker!r}")
        self.clip_model, self.download, self.require = clip_model, download, tuple(require)
        self.flow, self.tracker, self.dift_model = flow, tracker, dift_model
        self._missing: dict[str, str] = {}
        self._per_sample: dict[str, dict[str, float]] = {}
        for name in ("rows", "keys", "features", "feature_keys"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, edited: Tensor, batch: EditBatch) -> None:
        """Add images.

        Args:
            edited: float [b, 3, h, w] in [-1, 1].
            batch: without `target`, as in drag benchmarks, only fidelity and distances are measured; without
                `moving`, the scores by region leave its images out.

        Raises:
            ValueError: the source or the target has another shape.
        """
        for name, image in (("source", batch.source), ("target", batch.target)):
            if image is not None and image.shape != edited.shape:
                raise ValueError(
                    f"edited images {list(edited.shape)} need a {name} of their shape, got {list(image.shape)}; "
                    "resize the edited images"
                )
        with torch.autocast(edited.device.type, enabled=False), torch.no_grad():
            image, source = to_uint8(edited), to_uint8(batch.source)
            target = None if batch.target is None else to_uint8(batch.target)
            scores = self._scores(image, source, target, batch)
            scores |= {k + COPY: v for k, v in self._scores(source, source, target, batch).items()}
            unknown = torch.full((2, len(batch)), torch.nan, device=edited.device)
            truth = unknown if target is None else self._adherence(target, source, batch)
            scores |= {name + TRUTH: values for name, values in zip(ESTIMATED, truth, strict=True)}
            keys = torch.tensor([name_key(name) for name in batch.name], device=edited.device)
            if target is not None:
                self._add_features([image, source, target], keys)
        table = torch.stack([scores[name].to(EXACT) for name in SCORES], dim=1)
        self.rows.append(table)
        self.keys.append(keys)
        for name, row in zip(batch.name, table.tolist(), strict=True):
            self._per_sample[name] = {key: x for key, x in zip(SCORES, row, strict=True) if x == x}

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the states of all processes; a process without images contributes tables without rows."""
        widths = {"rows": (len(SCORES), EXACT), "features": (3 * CLIP_WIDTH, torch.float32)}
        for name in ("rows", "keys", "features", "feature_keys"):
            if not getattr(self, name):
                width, dtype = widths.get(name, (None, torch.int64))
                shape = (0,) if width is None else (0, width)
                setattr(self, name, [torch.zeros(shape, dtype=dtype, device=self.device)])
        super().sync(*args, **kwargs)

    def compute(self) -> dict[str, Any]:
        """Scores by name over all processes; a score of None has its reason in `not_measured`."""
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
        for name in ESTIMATED:
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
        """Scores [n, len(SCORES)] of all images, NaN where undefined. The order depends on the image names alone."""
        rows = dim_zero_cat(self.rows) if len(self.rows) else torch.zeros(0, len(SCORES), dtype=EXACT)
        return _ordered(rows, self.keys)

    def feature_table(self) -> Tensor:
        """CLIP features [n, 3, 512] of edited image, source and target, in the order of `table`."""
        empty = torch.zeros(0, 3 * CLIP_WIDTH)
        rows = dim_zero_cat(self.features) if len(self.features) else empty
        return _ordered(rows, self.feature_keys).unflatten(1, (3, CLIP_WIDTH)).to(EXACT)

    def per_sample(self) -> dict[str, dict[str, float]]:
        """Scores of this process since the last reset, by image name, then by score name."""
        return self._per_sample

    def reset(self) -> None:
        super().reset()
        self._per_sample = {}

    def _reasons(self, n: int, n_clip: int, counts: dict[str, int]) -> dict[str, str]:
        """The reason for each of METRICS that has no value."""
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
            reasons["clip_fid"] = "a Fréchet distance needs at least two images"
        return reasons

    def _intervals(self, table: Tensor, features: Tensor, result: dict[str, Any]) -> dict[str, list[float]]:
        """95 % intervals of all measured scores, by name."""
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
        """PER_IMAGE scores [b] of uint8 images, NaN where undefined or not measured."""
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
        return {**scores, **dict(zip(ESTIMATED, self._adherence(image, source, batch), strict=True))}

    def _adherence(self, images: Tensor, sources: Tensor, batch: EditBatch) -> Tensor:
        """Drag and sketch distances [2, b] of uint8 images, NaN where an image has no drag or sketch."""
        same = images is sources
        rows = [self._distances(images[i], sources[i], batch, i, same) for i in range(len(images))]
        return torch.tensor(rows, dtype=EXACT, device=images.device).T

    def _distances(
        self, image: Tensor, source: Tensor, batch: EditBatch, index: int, same: bool
    ) -> tuple[float, float]:
        """Drag and sketch distance of one image; `same` says that it is the source."""
        size, undefined = (source.shape[-2], source.shape[-1]), float("nan")
        drags = torch.zeros(0, 4)
        if batch.points is not None:
            drags = batch.points[index].float().cpu()
            drags = drags if batch.points_valid is None else drags[batch.points_valid[index].cpu()]
        if not len(drags) and batch.tracks is not None and batch.visible is not None:
            drags = tracked_drags(batch.tracks[index].float().cpu(), batch.visible[index].cpu(), size)
        control = None if batch.control is None else batch.control[index].cpu()
        drawn = control[0] > 0 if control is not None and is_sketch(control) else None
        if same:  # nothing has moved, so no estimate is needed
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
        """The network of LPIPS or CLIP-FID. None if its weights are missing; the reason is kept for `compute`."""
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
    """Hash an image's name to 63 bits, equal in all processes."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8], "big") >> 1


def _ordered(rows: Tensor, keys: list[Tensor]) -> Tensor:
    """The rows sorted by key, one for each key."""
    if not len(rows):
        return rows
    known = dim_zero_cat(keys).cpu()
    kept, inverse = torch.unique(known, return_inverse=True)
    first = torch.full((len(kept),), len(known)).scatter_reduce(0, inverse, torch.arange(len(known)), "amin")
    return rows.cpu()[first]
