"""Learned flow and tracks: what goes into the networks and comes out, and where their weights come from.

The networks have random weights, or are stand-ins with an answer that is known; nothing is fetched.
"""

import pickle
import sys
import types
from contextlib import nullcontext
from urllib.error import URLError

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models.optical_flow import Raft_Large_Weights, raft_large

from fp_lightning.errors import InputError
from fp_lightning.pairs.cotracker import CoTracker, load_cotracker
from fp_lightning.pairs.flow import raft, sea_raft
from fp_lightning.pairs.flow.learned import NetworkFlow, choose_device, fill, within_memory
from fp_lightning.pairs.flow.raft import load_raft
from fp_lightning.pairs.flow.sea_raft import load_sea_raft

RAFT_FILE = Raft_Large_Weights.C_T_SKHT_V2.url.rpartition("/")[2]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """Torch hub's folder, empty, without a network."""

    def unreachable(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "urlopen", unreachable)
    for load in (load_raft, load_sea_raft, load_cotracker):
        load.cache_clear()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub"


def images(count, height, width, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8))


def refusal(call, *args, **kwargs):
    """The message of the InputError that a call ends with, which is one line."""
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def coordinates(first, second):
    """A network that answers with pixel coordinates."""
    y, x = torch.meshgrid(*(torch.arange(side) for side in first.shape[-2:]), indexing="ij")
    return torch.stack([x, y]).float().expand(len(first), -1, -1, -1)


@pytest.mark.parametrize("size", [(128, 136), (64, 200), (131, 149), (1, 1)])
def test_padding_moves_nothing(size):
    flow = NetworkFlow(coordinates, CPU)(images(2, *size), images(2, *size))
    assert torch.equal(flow, coordinates(torch.empty(2, 3, *size), None))


def test_images_are_padded_by_their_last_row_and_column():
    seen = []

    def keep(first, second):
        seen.extend([first, second])
        return first[:, :2]

    source, target = images(1, 60, 133, seed=1), images(1, 60, 133, seed=2)
    NetworkFlow(keep, CPU)(source, target)
    for given, got in zip((source, target), seen, strict=True):
        expected = np.pad(given[0], ((0, 68), (0, 3), (0, 0)), mode="edge")
        assert torch.equal(got[0], torch.from_numpy(expected).permute(2, 0, 1) / 255)


def test_batches_keep_their_order_whatever_their_size():
    def means(first, second):
        return torch.stack([first.mean((1, 2, 3)), second.mean((1, 2, 3))], 1)[..., None, None].expand(-1, -1, 128, 128)

    first, second = ([np.full((128, 128, 3), value, np.uint8) for value in range(start, 255, 51)] for start in (0, 25))
    flow = NetworkFlow(means, CPU, batch_size=2)(first, second)
    assert (flow[:, :, 0, 0] * 255).round().tolist() == [[value, value + 25] for value in range(0, 255, 51)]
    assert torch.equal(flow, NetworkFlow(means, CPU)(first, second))


def test_first_and_second_images_come_in_pairs():
    with pytest.raises(ValueError, match="2 first and 1 second"):
        NetworkFlow(coordinates, CPU)(images(2, 8, 8), images(1, 8, 8))


def test_batches_that_do_not_fit_in_memory_are_halved_for_good():
    sizes = []

    def small(first, second):
        sizes.append(len(first))
        if len(first) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return coordinates(first, second)

    estimate = NetworkFlow(small, CPU, batch_size=8)
    assert estimate(images(5, 16, 16), images(5, 16, 16)).shape == (5, 2, 16, 16)
    assert sizes == [5, 4, 2, 2, 1]
    estimate(images(4, 16, 16), images(4, 16, 16))
    assert sizes[5:] == [2, 2]


def test_what_never_fits_in_memory_is_one_message():
    def never(size):
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert "--size" in refusal(within_memory, never, 8)


def test_networks_run_in_full_float32():
    seen = []

    def ask(first, second):
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cudnn.enabled, torch.is_grad_enabled()))
        return coordinates(first, second)

    before = torch.backends.cudnn.allow_tf32
    NetworkFlow(ask, CPU)(images(1, 8, 8), images(1, 8, 8))
    assert seen == [(False, True, False)] and torch.backends.cudnn.allow_tf32 == before


def test_auto_takes_the_gpu_if_there_is_one(monkeypatch):
    for available, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert choose_device("auto") == torch.device(device)


@pytest.fixture(scope="module")
def random_raft():
    torch.manual_seed(0)
    return raft_large().eval()


def test_raft_is_torchvisions(hub, random_raft, monkeypatch):
    """Weights from torch hub's cache; the same answer as torchvision's network after torchvision's transforms."""
    monkeypatch.setattr(raft, "UPDATES", 3)
    torch.save(random_raft.state_dict(), hub / "checkpoints" / RAFT_FILE)
    state = torch.random.get_rng_state()
    estimate = load_raft(device="cpu")
    assert torch.equal(torch.random.get_rng_state(), state)
    first, second = images(1, 128, 136, seed=1), images(1, 128, 136, seed=2)
    tensors = [torch.from_numpy(image[0]).permute(2, 0, 1)[None] for image in (first, second)]
    with torch.no_grad():
        expected = random_raft(*Raft_Large_Weights.C_T_SKHT_V2.transforms()(*tensors), num_flow_updates=3)[-1]
    flow = estimate(first, second)
    assert flow.dtype == torch.float32 and expected.abs().max() > 1
    assert torch.allclose(flow, expected, atol=1e-3)
    assert load_raft(device="cpu") is estimate


def test_raft_takes_small_images_and_a_safetensors_file(tmp_path, random_raft, monkeypatch):
    monkeypatch.setattr(raft, "UPDATES", 1)
    save_file(random_raft.state_dict(), tmp_path / "mine.safetensors")
    flow = load_raft(str(tmp_path / "mine.safetensors"), "cpu")(images(2, 70, 90), images(2, 70, 90))
    assert flow.shape == (2, 2, 70, 90) and flow.isfinite().all()


def test_raft_weights_that_cannot_be_fetched_are_one_message(hub):
    message = refusal(load_raft, device="cpu")
    for part in (RAFT_FILE, str(hub / "checkpoints"), "no route to host", "--flow-weights FILE"):
        assert part in message
    assert not list((hub / "checkpoints").iterdir())


def test_a_weight_file_that_is_not_there_is_one_message(tmp_path):
    path = str(tmp_path / "absent.pth")
    message = refusal(load_raft, path)
    assert path in message and "--flow-weights" in message


def test_a_download_is_kept_for_the_next_time(hub, random_raft, tmp_path, monkeypatch):
    def fetch(url, path, digest):
        assert url.endswith(RAFT_FILE) and digest in RAFT_FILE and len(digest) == 8
        torch.save(random_raft.state_dict(), path)

    with monkeypatch.context() as patch:
        patch.setattr(torch.hub, "download_url_to_file", fetch)
        load_raft(device="cpu")
    load_raft.cache_clear()
    load_raft(device="cpu")


def linear(**changes):
    return {"weight": torch.ones(2, 3), "bias": torch.zeros(2)} | changes


def test_weights_are_loaded_and_frozen(tmp_path):
    torch.save(linear(), tmp_path / "plain.pth")
    torch.save({"state_dict": linear(), "epoch": 3}, tmp_path / "checkpoint.ckpt")
    save_file(linear(), tmp_path / "safe.safetensors")
    for path in tmp_path.glob("*.*"):
        network = fill(nn.Linear(3, 2), path)
        assert network.weight.eq(1).all() and not network.weight.requires_grad and not network.training


def test_weights_that_do_not_fit_are_counted(tmp_path):
    torch.save({"weight": torch.ones(3, 3), "scale": torch.ones(1), "shift": torch.ones(1)}, tmp_path / "other.pth")
    message = refusal(fill, nn.Linear(3, 2), tmp_path / "other.pth")
    assert "other.pth does not match Linear: of its 2 tensors 1 are missing and 1 have another shape, 2 are" in message


class Harm:
    def __reduce__(self):
        return exec, ("import sys; sys.harmed = True",)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("page.pth", b"<html>not found</html>"),
        ("page.safetensors", b"<html>not found</html>"),
        ("empty.pth", b""),
        ("harm.pth", pickle.dumps(Harm(), protocol=2)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_that_are_no_weights_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert name in refusal(fill, nn.Linear(3, 2), tmp_path / name)
    assert not hasattr(sys, "harmed")


def test_a_truncated_file_is_refused(tmp_path):
    torch.save(linear(), tmp_path / "half.pth")
    whole = (tmp_path / "half.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    assert "half.pth" in refusal(fill, nn.Linear(3, 2), tmp_path / "half.pth")


@pytest.mark.parametrize("content", [[torch.ones(1)], {"weight": torch.ones(1), "epoch": 3}])
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "list.pth")
    assert "has no state dict" in refusal(fill, nn.Linear(3, 2), tmp_path / "list.pth")


class BlueAndRed(nn.Module):
    """In place of SEA-RAFT: (blue of the first image, red of the second), times a weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, inputs):
        both = inputs["images"]  # [b, 2, 3, h, w], BGR in [0, 1] as ptlflow's models take them
        return {"flows": self.weight * torch.stack([both[:, 0, 0], both[:, 1, 2]], 1)[:, None]}


@pytest.fixture
def ptlflow_stand_in(monkeypatch):
    module = types.ModuleType("ptlflow")
    BlueAndRed.pretrained_checkpoints = {name: f"https://weights.invalid/{name}.ckpt" for name in ("sintel", "spring")}
    module.get_model = lambda name: {"sea_raft_m": BlueAndRed}[name]()
    monkeypatch.setitem(sys.modules, "ptlflow", module)


@pytest.mark.parametrize("trained_on", ["sintel", "spring"])
def test_sea_raft_gets_bgr_and_its_own_weights(hub, ptlflow_stand_in, trained_on):
    torch.save({"state_dict": {"weight": torch.tensor([255.0])}}, hub / "checkpoints" / f"{trained_on}.ckpt")
    first, second = images(2, 40, 50, seed=1), images(2, 40, 50, seed=2)
    flow = load_sea_raft(device="cpu", trained_on=trained_on)(first, second)
    expected = [np.stack([a[..., 2], b[..., 0]]) for a, b in zip(first, second, strict=True)]
    assert np.array_equal(flow.round().numpy(), expected)


def test_sea_raft_says_what_is_missing(hub, ptlflow_stand_in, monkeypatch):
    message = refusal(load_sea_raft)
    assert f"{sea_raft.TRAINED_ON}.ckpt" in message and str(hub / "checkpoints") in message
    assert "known: sintel, spring" in refusal(load_sea_raft, trained_on="films")
    monkeypatch.setitem(sys.modules, "ptlflow", None)
    message = refusal(load_sea_raft)
    assert "fp-lightning[flow]" in message and "--flow raft" in message


def test_sea_raft_is_ptlflows(tmp_path):
    """The network sees what its authors give it, RGB in [-1, 1], and its own answer comes back."""
    ptlflow = pytest.importorskip("ptlflow", reason="the optional package ptlflow is not installed")
    torch.manual_seed(0)
    network = ptlflow.get_model("sea_raft_m").eval()
    torch.save({"state_dict": network.state_dict()}, tmp_path / "mine.ckpt")
    first, second = images(1, 128, 136, seed=1), images(1, 128, 136, seed=2)
    rgb = [torch.from_numpy(image[0]).permute(2, 0, 1)[None] / 255 for image in (first, second)]
    seen = []
    network.cnet.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    with torch.no_grad():
        expected = network({"images": torch.stack(rgb, 1).flip(2)})["flows"][:, 0]
    assert torch.allclose(seen[0], 2 * torch.cat(rgb, 1) - 1, atol=1e-6)
    flow = load_sea_raft(str(tmp_path / "mine.ckpt"), "cpu")(first, second)
    assert expected.abs().max() > 1e-2 and torch.allclose(flow, expected, atol=1e-3)


HUBCONF = '''
import torch

class Predictor(torch.nn.Module):
    """In place of CoTracker: everything moves as the pixel of the colour that its weights hold.

    Whatever is asked at a pixel's centre, which are whole numbers here, is seen in every frame.
    """

    def __init__(self):
        super().__init__()
        self.model = torch.nn.Linear(3, 1, bias=False)

    def forward(self, video, queries, backward_tracking=False):
        width = video.shape[-1]
        colour = self.model.weight.view(1, 3, 1, 1)
        index = (video[0] - colour).abs().sum(1).flatten(1).argmin(1)
        dot = torch.stack([index % width, index // width], 1).float()
        time, position = queries[0, :, 0].long(), queries[0, :, 1:]
        tracks = dot[:, None] + position - dot[time]
        if not backward_tracking:
            before = torch.arange(len(dot))[:, None] < time
            tracks = torch.where(before[..., None], position, tracks)
        seen = (position == position.round()).all(1)
        return tracks[None], seen.expand(1, len(dot), -1)

def cotracker3_offline(pretrained=True):
    predictor = Predictor()
    if pretrained:
        url = "https://weights.invalid/scaled_offline.pth"
        predictor.model.load_state_dict(torch.hub.load_state_dict_from_url(url))
    return predictor
'''
COLOUR = (250, 130, 10)
PATH = [(5, 3), (9, 4), (14, 9), (15, 12)]  # (x, y) of the pixel of that colour, from source to target


@pytest.fixture
def dot():
    """Frames of 20 × 30 pixels; the colour with its channels the other way round stays in a corner."""
    frames = np.zeros((len(PATH), 20, 30, 3), np.uint8)
    frames[:, 0, 29] = COLOUR[::-1]
    for frame, (x, y) in zip(frames, PATH, strict=True):
        frame[y, x] = COLOUR
    return list(frames)


def write_repository(folder, weights="scaled_offline.pth"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hubconf.py").write_text(HUBCONF)
    state = {"weight": torch.tensor([COLOUR], dtype=torch.float32)}
    path = folder / weights
    path.parent.mkdir(exist_ok=True)
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return folder


@pytest.fixture
def tracker(tmp_path):
    return load_cotracker(str(write_repository(tmp_path / "clone")), "cpu", accept_license=True)


def test_tracks_lead_from_the_last_frame_to_the_first(tracker, dot):
    positions = torch.tensor([[15.5, 20.5, 24.0], [12.5, 15.5, 10.5]]).reshape(2, 1, 3)
    tracks, visible = tracker(dot, positions)
    assert tracks.dtype == torch.float32 and visible.dtype == torch.bool
    assert tracks[:, 0].T.tolist() == [[5.5, 3.5], [10.5, 6.5], [14.0, 1.5]]
    assert visible.tolist() == [[True, True, False]]  # 24.0 is between two pixels


@pytest.mark.parametrize("sign", [-1, 1])
def test_positions_outside_the_source_are_not_visible(tracker, dot, sign):
    x, y = torch.meshgrid(torch.arange(30) + 0.5, torch.arange(20) + 0.5, indexing="xy")
    tracks, visible = tracker(dot[::-sign], torch.stack([x, y]))
    assert torch.equal(tracks, torch.stack([x + sign * 10, y + sign * 9]))
    inside = (x > 10) & (y > 9) if sign < 0 else (x < 20) & (y < 11)
    assert torch.equal(visible, inside)


def test_points_are_followed_in_calls_that_spread_over_the_image(tracker, dot):
    calls = []

    def counted(video, queries, backward_tracking):
        calls.append(queries[0, :, 1].tolist())
        return tracker.predictor(video, queries, backward_tracking)

    positions = torch.stack([torch.arange(7) + 10.5, torch.full((7,), 9.5)])[:, None]
    for got, expected in zip(CoTracker(counted, CPU, 3)(dot, positions), tracker(dot, positions), strict=True):
        assert torch.equal(got, expected)
    assert calls == [[10, 13, 16], [11, 14], [12, 15]]


def test_points_that_do_not_fit_in_memory_are_followed_in_more_calls(tracker, dot):
    sizes = []

    def small(video, queries, backward_tracking):
        sizes.append(queries.shape[1])
        if queries.shape[1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return tracker.predictor(video, queries, backward_tracking)

    positions = torch.full((2, 2, 4), 15.5)
    halving = CoTracker(small, CPU, 8)
    assert halving(dot, positions)[1].all() and halving.points == 2
    assert sizes == [8, 4, 2, 2, 2, 2]


def test_the_licence_is_accepted_before_anything_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "load", lambda *args, **kwargs: pytest.fail("loaded without consent"))
    for weights in (None, str(write_repository(tmp_path / "clone"))):
        message = refusal(load_cotracker, weights)
        assert "CC-BY-NC 4.0" in message and "--accept-license" in message


@pytest.mark.parametrize("weights", ["checkpoints/scaled_offline.pth", "scaled_offline.safetensors"])
def test_the_trackers_weights_may_lie_in_its_folder_in_two_ways(tmp_path, dot, weights):
    folder = write_repository(tmp_path / "clone", weights)
    tracks, _ = load_cotracker(str(folder), "cpu", True)(dot, torch.full((2, 1, 1), 15.5))
    assert tracks.flatten().tolist() == [5.5, 6.5]


def test_the_tracker_is_taken_from_torch_hubs_cache_without_a_network(hub, dot):
    folder = write_repository(hub / "facebookresearch_co-tracker_main")
    (folder / "scaled_offline.pth").rename(hub / "checkpoints" / "scaled_offline.pth")
    tracks, _ = load_cotracker(None, "cpu", True)(dot, torch.full((2, 1, 1), 15.5))
    assert tracks.flatten().tolist() == [5.5, 6.5]


@pytest.mark.parametrize("code", [False, True])
def test_a_tracker_that_cannot_be_fetched_is_one_message(hub, code):
    if code:
        (write_repository(hub / "facebookresearch_co-tracker_main") / "scaled_offline.pth").unlink()
    message = refusal(load_cotracker, accept_license=True)
    for part in (str(hub / "facebookresearch_co-tracker_main"), str(hub / "checkpoints" / "scaled_offline.pth")):
        assert part in message
    assert "--tracker-weights FOLDER" in message


def test_nothing_is_asked_at_the_terminal_when_the_tracker_is_fetched(monkeypatch):
    """Workers have none, and torch hub asks before it runs code of owners it does not know.

    Here the network breaks down after the first page.
    """
    pages = iter([nullcontext()])
    broken = torch.hub.urlopen
    monkeypatch.setattr(torch.hub, "urlopen", lambda *args: next(pages, None) or broken())
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("asked at the terminal"))
    assert "no route to host" in refusal(load_cotracker, accept_license=True)
    assert next(pages, None) is None


def test_a_folder_that_is_no_tracker_is_one_message(tmp_path):
    def said(folder):
        return refusal(load_cotracker, str(folder), "cpu", True)

    assert "no scaled_offline.pth in" in said(tmp_path / "absent")
    folder = write_repository(tmp_path / "clone")
    (folder / "hubconf.py").unlink()
    assert "no hubconf.py in" in said(folder)
    (folder / "hubconf.py").write_text("import a_package_that_is_not_there\n")
    assert "a_package_that_is_not_there" in said(folder)
    write_repository(folder)
    torch.save({}, folder / "scaled_offline.pth")
    assert "1 are missing" in said(folder)
