"""Scores with answers that can be known beforehand, and metrics that say why they were not measured."""

from __future__ import annotations

import math

import pytest
import torch
from commandline import CONTEXT
from lightning.pytorch import LightningModule
from torch import Tensor

from fp_lightning.errors import InputError
from fp_lightning.evaluation.metrics import NO_TARGET, SCORES, EditMetrics
from fp_lightning.evaluation.perceptual import CLIP_WIDTH, clip_features
from fp_lightning.evaluation.scores import EXACT, frechet_distance, frechet_of_features, psnr, ssim
from fp_lightning.types import EditBatch, to_uint8, to_unit_range

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torchvision")  # lpips's old arguments


@pytest.fixture(autouse=True)
def no_weights(tmp_path, monkeypatch):
    """No pretrained weights, wherever this runs, and no way to fetch any."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *_, **__: pytest.fail("fetched weights"))


def make_batch(n: int = 4, seed: int = 0, size: int = 64) -> tuple[Tensor, EditBatch]:
    """Edits near their targets, which differ from their sources in a square that moves."""
    draw = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 256, (n, 3, size, size), generator=draw, dtype=torch.uint8)
    moving = torch.zeros(n, 1, size, size, dtype=torch.bool)
    moving[:, :, 10:20, 30:50] = True
    source = torch.where(moving, 255 - target, target)
    noise = torch.randn(n, 3, size, size, generator=draw) * 0.1
    batch = EditBatch(
        source=to_unit_range(source),
        target=to_unit_range(target),
        moving=moving,
        name=[f"{seed}-{i}" for i in range(n)],
    )
    return (to_unit_range(target) + noise).clamp(-1, 1), batch


def part(edited: Tensor, batch: EditBatch, rows: slice) -> tuple[Tensor, EditBatch]:
    """Some rows of a batch."""
    return edited[rows], EditBatch(
        source=batch.source[rows], target=batch.target[rows], moving=batch.moving[rows], name=batch.name[rows]
    )


def close(one, two, rel: float) -> None:
    """Nested dicts and lists with numbers equal to `rel`, all else the same."""
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        one, two = list(one.values()), list(two.values())
    if isinstance(one, list):
        for a, b in zip(one, two, strict=True):
            close(a, b, rel)
    else:
        assert two == (pytest.approx(one, rel=rel, abs=rel) if isinstance(one, float) and rel else one)


def scores_of(*parts: tuple[Tensor, EditBatch]) -> dict:
    metrics = EditMetrics()
    for edited, batch in parts:
        metrics.update(edited, batch)
    return metrics.compute()


@pytest.fixture
def alexnet(tmp_path):
    """LPIPS on a random AlexNet whose convolutions lie where torchvision keeps its own."""
    import lpips

    reference = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    stored = {"features." + key.partition(".")[2]: value for key, value in reference.net.state_dict().items()}
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(stored, folder / "alexnet-owt-7be5be79.pth")
    return reference


def save_clip(folder, projection_dim: int = CLIP_WIDTH):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=projection_dim,
        image_size=32,
        patch_size=8,
    )
    network = CLIPVisionModelWithProjection(config).eval()
    network.save_pretrained(folder)
    return network


# PSNR


def test_psnr_is_its_formula():
    image, target = torch.full((2, 3, 8, 8), 0.5), torch.full((2, 3, 8, 8), 0.5)
    image[0] += 0.1
    image[1] -= 0.02
    expected = torch.tensor([20.0, -20 * math.log10(0.02)])
    torch.testing.assert_close(psnr(image, target), expected, atol=1e-3, rtol=0)


def test_psnr_of_a_region_ignores_the_rest():
    image = torch.rand(2, 3, 8, 8)
    target, region = image.clone(), torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    region[0, :, 2:4] = True
    target[0, :, 2:4] += 0.1
    target[0, :, 5:] -= 0.9
    value = psnr(image, target, region)
    assert value[0].item() == pytest.approx(20, abs=1e-3)
    assert value[1].isnan()  # the empty region


def test_psnr_of_a_perfect_image_is_100():
    image = torch.rand(1, 3, 8, 8)
    assert psnr(image, image).item() == pytest.approx(100)


# SSIM


def test_ssim_of_constant_images_is_the_luminance_term():
    a, b, c1 = 0.3, 0.6, 0.01**2
    value = ssim(torch.full((1, 3, 16, 16), a), torch.full((1, 3, 16, 16), b))
    assert value.item() == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), abs=1e-6)


def test_ssim_is_its_definition():
    """Window by window, with weights written out: Wang et al. 2004, equation 13."""
    draw = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 1, 12, 13, generator=draw, dtype=torch.float64)
    window = torch.tensor([[math.exp(-(i * i + j * j) / 4.5) for j in range(-5, 6)] for i in range(-5, 6)]).double()
    window /= window.sum()

    def mirrored(i: int, n: int) -> int:
        return abs(i) if i < n else 2 * (n - 1) - i

    values = []
    for i in range(12):
        for j in range(13):
            rows = [mirrored(i + k, 12) for k in range(-5, 6)]
            columns = [mirrored(j + k, 13) for k in range(-5, 6)]
            a, b = x[0][rows][:, columns], y[0][rows][:, columns]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            cov = (window * (a - mean_a) * (b - mean_b)).sum()
            structure = (2 * mean_a * mean_b + 0.01**2) * (2 * cov + 0.03**2)
            values.append(structure / ((mean_a**2 + mean_b**2 + 0.01**2) * (var_a + var_b + 0.03**2)))
    assert ssim(x[None], y[None]).item() == pytest.approx(torch.stack(values).mean().item(), abs=1e-9)


def test_ssim_is_torchmetrics_in_float64():
    from torchmetrics.functional.image import structural_similarity_index_measure

    x = torch.rand(2, 3, 20, 31, dtype=torch.float64)
    y = (x + 0.1 * torch.randn_like(x)).clamp(0, 1)
    expected = structural_similarity_index_measure(x, y, data_range=1.0, reduction="none")
    torch.testing.assert_close(ssim(x, y), expected, rtol=1e-12, atol=0)


def test_flat_images_are_similar_to_themselves():
    flat = torch.full((1, 3, 16, 16), 243 / 255)
    assert ssim(flat, flat).item() == pytest.approx(1, abs=1e-9)


# EditMetrics


def test_a_perfect_edit_beats_noise_and_the_source():
    edited, batch = make_batch()
    assert batch.target is not None
    perfect, noisy = scores_of((batch.target, batch)), scores_of((edited, batch))
    assert perfect["ssim"] == pytest.approx(1)
    assert perfect["psnr"] == perfect["psnr_moving"] == perfect["psnr_background"] == pytest.approx(100)
    assert noisy["ssim"] < 1
    assert noisy["psnr"] < 40
    assert noisy["psnr_moving_gain"] > 0


def test_the_source_unchanged_scores_as_the_floor():
    _, batch = make_batch()
    scores = scores_of((batch.source, batch))
    for name in ("ssim", "psnr", "psnr_moving", "psnr_background"):
        assert scores[name] == scores[name + "_copy_source"]
    assert scores["psnr_moving_gain"] == 0
    assert scores["psnr_background"] == pytest.approx(100)  # the scene differs only where it moves
    assert scores["psnr_moving"] < scores["psnr"]


def test_scores_are_those_of_images_rounded_to_8_bits():
    edited, batch = make_batch()
    assert scores_of((edited, batch)) == scores_of((to_unit_range(to_uint8(edited)), batch))
    assert batch.target is not None
    assert scores_of((batch.target + 0.003, batch))["psnr"] == pytest.approx(100)  # less than half a grey level


def test_psnr_is_averaged_over_images_not_over_errors():
    _, batch = make_batch(2)
    assert batch.target is not None
    grey = torch.zeros_like(batch.target)
    batch.target = to_unit_range(torch.full_like(grey, 100, dtype=torch.uint8))
    edited = batch.target.clone()
    edited[0] += 2 / 127.5
    edited[1] += 20 / 127.5
    expected = [20 * math.log10(255 / 2), 20 * math.log10(255 / 20)]
    assert scores_of((edited, batch))["psnr"] == pytest.approx(sum(expected) / 2, abs=1e-4)


def test_images_without_motion_are_left_out_and_counted():
    edited, batch = make_batch(3)
    assert batch.moving is not None
    alone = scores_of(part(edited, batch, slice(1, 3)))
    batch.moving[0] = False
    scores = scores_of((edited, batch))
    assert (scores["n"], scores["n_moving"]) == (3, 2)
    assert scores["psnr_moving"] == pytest.approx(alone["psnr_moving"])


def test_without_motion_there_is_no_moving_score_but_a_reason():
    edited, batch = make_batch(2)
    batch.moving = None
    scores = scores_of((edited, batch))
    for name in ("psnr_moving", "psnr_moving_copy_source", "psnr_moving_gain", "psnr_background"):
        assert scores[name] is None
        assert "no image has a pixel known to be" in scores["not_measured"][name]


def test_every_missing_number_has_a_reason_and_no_other_has():
    for scores in (scores_of(make_batch()), scores_of(make_batch(1))):
        assert {key for key, value in scores.items() if value is None} == set(scores["not_measured"])
    with pytest.warns(UserWarning, match="before"):
        empty = EditMetrics().compute()
    assert empty["n"] == 0
    assert set(empty["not_measured"].values()) == {"no image was evaluated"}


@pytest.mark.parametrize("weights", [False, True])
def test_uneven_splits_sum_to_the_whole(weights, request, tmp_path, monkeypatch):
    """Two processes add their states; their shares differ in size, and so do the batches in a share."""
    clip_model = "nowhere"
    if weights:
        request.getfixturevalue("alexnet")
        save_clip(tmp_path / "clip")
        clip_model = str(tmp_path / "clip")
    edited, batch = make_batch(7)
    whole, first, second = (EditMetrics(clip_model=clip_model) for _ in range(3))
    whole.update(edited, batch)
    first.update(*part(edited, batch, slice(0, 4)))
    first.update(*part(edited, batch, slice(4, 5)))
    second.update(*part(edited, batch, slice(5, 7)))
    for state in ("rows", "keys", "features", "feature_keys"):
        assert first._reductions[state] is whole._reductions[state]
        setattr(first, state, getattr(second, state) + getattr(first, state))
    one, two = whole.compute(), first.compute()
    assert one.keys() == two.keys()
    close(one, two, 1e-5 if weights else 0)  # a network's float32 rounds otherwise in a batch of another size
    assert (one["lpips"] is not None) == (one["clip_fid"] is not None) == weights


def test_scores_per_sample_average_to_the_result():
    edited, batch = make_batch(3)
    metrics = EditMetrics()
    metrics.update(*part(edited, batch, slice(0, 2)))
    metrics.update(*part(edited, batch, slice(2, 3)))
    rows = metrics.per_sample()
    assert list(rows) == batch.name
    assert set(rows["0-0"]) == {name for name in SCORES if not name.startswith(("lpips", "fidelity", "drag", "sketch"))}
    result = metrics.compute()
    assert sum(row["psnr_moving"] for row in rows.values()) / 3 == pytest.approx(result["psnr_moving"])
    metrics.reset()
    assert metrics.per_sample() == {}


def test_half_precision_of_the_module_lowers_no_score():
    edited, batch = make_batch()
    lowered = EditMetrics().to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered.update(edited, batch)
    assert lowered.table().dtype == EXACT
    assert lowered.compute() == scores_of((edited, batch))


def test_an_edit_needs_a_target_of_its_shape():
    edited, batch = make_batch(2)
    with pytest.raises(ValueError, match="need a source of their shape"):
        EditMetrics().update(edited[..., :32], batch)
    batch.target = batch.target[..., :32]
    with pytest.raises(ValueError, match="need a target of their shape"):
        EditMetrics().update(edited, batch)


def test_without_targets_only_what_needs_none_is_measured(alexnet):
    edited, batch = make_batch(2)
    batch.target, batch.points = None, torch.tensor([[[4.0, 4.0, 12.0, 4.0]]]).expand(2, -1, -1)
    scores = scores_of((edited, batch))
    measured = {key for key, value in scores.items() if isinstance(value, float)}
    assert measured == {name + suffix for name in ("fidelity", "drag_distance") for suffix in ("", "_copy_source")}
    assert scores["not_measured"]["ssim"] == scores["not_measured"]["clip_fid"] == NO_TARGET
    assert scores["drag_distance_copy_source"] == pytest.approx(8 * 512 / 64)


def _rank(number: int, world: int, address: str, out: str) -> None:
    """One of `world` processes, each with another number of images; the last has none."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=number, world_size=world)
    edited, batch = make_batch(7)
    metrics = EditMetrics(clip_model="nowhere")
    for rows in ([slice(0, 3), slice(3, 4)], [slice(4, 7)], [])[number]:
        metrics.update(*part(edited, batch, rows))
    result = metrics.compute()
    torch.save((result, len(metrics.per_sample())), f"{out}/{number}.pt")
    dist.destroy_process_group()


def test_processes_with_uneven_shares_agree_with_one(tmp_path):
    """Three processes over gloo, the last without a single image."""
    arguments = (3, f"file://{tmp_path}/meeting", str(tmp_path))
    torch.multiprocessing.start_processes(_rank, arguments, nprocs=3, start_method=CONTEXT.get_start_method())
    edited, batch = make_batch(7)
    whole = EditMetrics(clip_model="nowhere")
    whole.update(edited, batch)
    expected = whole.compute()
    seen = [torch.load(tmp_path / f"{number}.pt", weights_only=False) for number in range(3)]
    assert [count for _, count in seen] == [4, 3, 0]
    for result, _ in seen:
        assert {k: v for k, v in result.items() if k != "not_measured"} == {
            k: v for k, v in expected.items() if k != "not_measured"
        }


def test_an_image_that_comes_twice_counts_once():
    edited, batch = make_batch(3)
    once, twice = EditMetrics(), EditMetrics()
    once.update(edited, batch)
    twice.update(edited, batch)
    twice.update(*part(edited, batch, slice(1, 3)))
    assert once.compute() == twice.compute()


def test_intervals_hold_their_values_and_shrink_with_images():
    small, large = scores_of(make_batch(6)), scores_of(*(make_batch(6, seed) for seed in range(6)))
    for scores in (small, large):
        for name, (low, high) in scores["intervals"].items():
            assert low <= scores[name] <= high
    assert set(small["intervals"]) == {name for name, value in small.items() if isinstance(value, float)}
    width = [s["intervals"]["psnr"][1] - s["intervals"]["psnr"][0] for s in (small, large)]
    assert width[1] < width[0]


def test_scores_of_regions_add_up():
    """PSNR and SSIM over the parts, weighted by their pixels, are those over the whole."""
    edited, batch = make_batch(1)
    row = scores_of((edited, batch))
    share = batch.moving.float().mean().item()
    assert row["ssim"] == pytest.approx(share * row["ssim_moving"] + (1 - share) * row["ssim_background"])
    mse = {name: 10 ** (-row[name] / 10) for name in ("psnr", "psnr_moving", "psnr_background")}
    assert mse["psnr"] == pytest.approx(share * mse["psnr_moving"] + (1 - share) * mse["psnr_background"])


def test_edits_rank_as_they_should():
    """On procedural scenes: the target, its blur, the object in a wrong place, and another scene."""
    from torchvision.transforms.functional import gaussian_blur

    from fp_lightning.scenes.scene import Scene
    from fp_lightning.signals.sketch import sketch

    metrics = {name: EditMetrics() for name in ("target", "blurred", "source", "other")}
    for seed in range(6):
        pair, other = (Scene(s, (96, 96)).pair(stride=8) for s in (seed, seed + 50))
        batch = EditBatch(
            to_unit_range(pair.source)[None], [str(seed)], target=to_unit_range(pair.target)[None],
            control=sketch(pair)[None], tracks=pair.tracks[None], visible=pair.visible[None],
            moving=pair.moving()[None],
        )  # fmt: skip
        edits = {"target": pair.target, "blurred": gaussian_blur(pair.target, [7, 7]), "source": pair.source}
        for name, image in {**edits, "other": other.target}.items():
            metrics[name].update(to_unit_range(image)[None], batch)
    scores = {name: m.compute() for name, m in metrics.items()}

    def order(metric: str) -> list[str]:
        return sorted(scores, key=lambda name: -scores[name][metric])

    assert order("psnr_moving")[:2] == ["target", "blurred"]
    assert order("psnr_background")[0] == "target"
    assert order("ssim") == ["target", *sorted(["blurred", "source"], key=lambda n: -scores[n]["ssim"]), "other"]
    assert scores["target"]["drag_distance"] == pytest.approx(scores["target"]["drag_distance_target"])
    for metric in ("drag_distance", "sketch_distance"):
        assert scores["target"][metric] < scores["source"][metric]
    assert scores["target"]["sketch_distance"] < scores["other"]["sketch_distance"]


# LPIPS and CLIP-FID


def test_lpips_of_a_region_is_that_of_its_places(alexnet):
    from fp_lightning.evaluation.perceptual import lpips_maps, lpips_over

    image, target = torch.rand(2, 2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        maps = lpips_maps(alexnet.eval(), image, target)
        whole = alexnet(image, target).flatten()
    torch.testing.assert_close(lpips_over(maps), whole)
    torch.testing.assert_close(lpips_over(maps, torch.ones(2, 1, 64, 64, dtype=torch.bool)), whole)
    left = torch.zeros(2, 1, 64, 64, dtype=torch.bool)
    left[..., :32] = True
    parts = lpips_over(maps, left), lpips_over(maps, ~left)
    torch.testing.assert_close((parts[0] + parts[1]) / 2, whole, rtol=0.05, atol=0)
    assert lpips_over(maps, torch.zeros_like(left)).isnan().all()


def test_without_weights_nothing_is_measured_and_the_reason_says_how(tmp_path):
    metrics = EditMetrics(clip_model=str(tmp_path / "clip"))
    metrics.update(*make_batch())
    scores = metrics.compute()
    for name in ("lpips", "lpips_copy_source", "clip_fid", "clip_fid_copy_source"):
        assert scores[name] is None
    lpips, clip = scores["not_measured"]["lpips"], scores["not_measured"]["clip_fid"]
    assert str(tmp_path / "torch/hub/checkpoints/alexnet-owt-7be5be79.pth") in lpips
    assert "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth" in lpips
    assert str(tmp_path / "clip") in clip
    assert "hf download openai/clip-vit-base-patch32" in clip


def test_weights_missing_in_one_process_leave_no_number():
    metrics = EditMetrics(clip_model="nowhere")
    metrics.update(*make_batch(4))
    metrics._missing = {}
    metrics.rows[0][:3, SCORES.index("lpips")] = 0.5
    metrics.features.append(torch.rand(3, 3 * CLIP_WIDTH))
    metrics.feature_keys.append(metrics.keys[0][:3])
    scores = metrics.compute()
    assert scores["lpips"] is scores["clip_fid"] is None
    assert scores["not_measured"]["lpips"] == "its weights are missing in another process"


def test_lpips_is_lpips(alexnet):
    edited, batch = make_batch()
    scores = scores_of((edited, batch))
    with torch.no_grad():
        expected = alexnet(to_unit_range(to_uint8(edited)), batch.target).mean().item()
    assert scores["lpips"] == pytest.approx(expected, rel=1e-5)
    assert scores["lpips"] > 0
    assert "lpips" not in scores["not_measured"]


def test_loading_a_backbone_leaves_the_random_numbers_alone(alexnet, tmp_path):
    save_clip(tmp_path / "clip")
    edited, batch = make_batch()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    metrics = EditMetrics(clip_model=str(tmp_path / "clip"))
    metrics.update(edited, batch)
    assert not {"lpips", "clip_fid"} & set(metrics.compute()["not_measured"])
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_backbones_are_no_part_of_the_module(alexnet, tmp_path):
    class Holder(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.edit_metrics = EditMetrics(clip_model=str(tmp_path / "clip"))

    save_clip(tmp_path / "clip")
    module = Holder()
    module.edit_metrics.update(*make_batch())
    assert not {"lpips", "clip_fid"} & set(module.edit_metrics.compute()["not_measured"])
    assert list(module.parameters()) == []
    assert module.state_dict() == {}
    assert len(list(module.modules())) == 2


def test_clip_fid_is_the_frechet_distance_of_clip_features(tmp_path):
    network = save_clip(tmp_path / "clip")
    edited, batch = make_batch(6)
    metrics = EditMetrics(clip_model=str(tmp_path / "clip"))
    metrics.update(edited, batch)
    assert batch.target is not None
    with torch.no_grad():
        a, b, c = (clip_features(network, to_uint8(x)).double() for x in (edited, batch.target, batch.source))
    scores = metrics.compute()
    for name, features in (("clip_fid", a), ("clip_fid_copy_source", c)):
        expected = frechet_distance(features.mean(0), features.T.cov(), b.mean(0), b.T.cov())
        assert scores[name] == pytest.approx(expected, rel=1e-3, abs=1e-5)
        assert expected > 1e-3


def test_clip_fid_of_the_targets_themselves_is_zero(tmp_path):
    save_clip(tmp_path / "clip")
    _, batch = make_batch(4)
    metrics = EditMetrics(clip_model=str(tmp_path / "clip"))
    metrics.update(batch.target, batch)
    assert metrics.compute()["clip_fid"] == pytest.approx(0, abs=1e-3)


def test_clip_fid_needs_two_images(tmp_path):
    save_clip(tmp_path / "clip")
    metrics = EditMetrics(clip_model=str(tmp_path / "clip"))
    metrics.update(*make_batch(1))
    assert "two images" in metrics.compute()["not_measured"]["clip_fid"]


def test_clip_sees_the_centre_of_a_wide_image(tmp_path):
    network = save_clip(tmp_path / "clip")
    wide = torch.randint(0, 256, (1, 3, 32, 64), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(clip_features(network, wide), clip_features(network, wide[..., 16:48]))


def test_clip_weights_that_lack_a_part_are_not_measured(tmp_path):
    from safetensors.torch import load_file, save_file

    save_clip(tmp_path / "clip")
    weights = load_file(tmp_path / "clip/model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "clip/model.safetensors", metadata={"format": "pt"})
    metrics = EditMetrics(clip_model=str(tmp_path / "clip"))
    metrics.update(*make_batch(2))
    assert "lacks visual_projection.weight" in metrics.compute()["not_measured"]["clip_fid"]


def test_a_clip_of_another_width_is_an_input_error(tmp_path):
    save_clip(tmp_path / "clip", projection_dim=24)
    with pytest.raises(InputError, match="clip_model must have 512 features"):
        EditMetrics(clip_model=str(tmp_path / "clip")).update(*make_batch(2))


def test_frechet_distance_of_gaussians_has_a_closed_form():
    """For covariances that commute it is |m_a − m_b|² + Σ (√λ_a − √λ_b)²."""
    draw = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(5, 5, generator=draw, dtype=torch.float64)).Q
    mean_a, mean_b = torch.randn(2, 5, generator=draw, dtype=torch.float64)
    a, b = torch.rand(2, 5, generator=draw, dtype=torch.float64) + 0.1
    value = frechet_distance(mean_a, basis @ a.diag() @ basis.T, mean_b, basis @ b.diag() @ basis.T)
    expected = (mean_a - mean_b).square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    assert value == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("n", [6, 40])  # fewer images than features, and more
def test_frechet_distance_without_a_matrix_root_is_the_same(n):
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, n, 12, generator=draw, dtype=torch.float64)
    b = b * torch.rand(12, generator=draw, dtype=torch.float64) + 0.3
    expected = frechet_distance(a.mean(0), a.T.cov(), b.mean(0), b.T.cov())
    assert frechet_of_features(a, b) == pytest.approx(expected, rel=1e-9 if n > 12 else 1e-3)
    assert frechet_of_features(a, a) == pytest.approx(0, abs=1e-9)


def test_points_are_found_by_the_features_of_stable_diffusion(tmp_path):
    """A folder of the real format with tiny random weights: a shifted image is found shifted."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from fp_lightning.evaluation.dift import load_dift

    torch.manual_seed(0)
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}
    (tmp_path / "vocab.json").write_text(__import__("json").dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    text = CLIPTextConfig(
        vocab_size=3, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(16,), norm_num_groups=8, latent_channels=4),
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"), model_max_length=8),
        unet=UNet2DConditionModel(
            block_out_channels=(16, 16), down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
            layers_per_block=1, cross_attention_dim=16, norm_num_groups=8, attention_head_dim=8,
        ),
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(tmp_path / "sd")
    tracker = load_dift(str(tmp_path / "sd"), torch.device("cpu"))
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    points = torch.tensor([[5.5, 9.5], [20.5, 12.5], [28.5, 30.5]])
    torch.testing.assert_close(tracker(image, image, points), points)
    with pytest.raises(InputError, match="tracker dift needs Stable Diffusion.*tracker: flow"):
        load_dift(str(tmp_path / "nowhere"), torch.device("cpu"))
