"""The diffusers pipeline: sizes, every signal, save and load, agreement with the sampler."""

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from conftest import make_editor
from PIL import Image
from safetensors.torch import load_file, save_file

from fp_lightning.errors import InputError
from fp_lightning.inference import pipeline, pipeline_files
from fp_lightning.inference.pipeline import FramePainterPipeline
from fp_lightning.inference.sampler import Sampling, sample
from fp_lightning.media.images import coarse_image, drags, squeeze, strokes, unsqueeze
from fp_lightning.model.build import build_editor
from fp_lightning.model.editor import FramePainter
from fp_lightning.types import EditBatch, to_unit_range


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def drawing(width: int, height: int) -> Image.Image:
    drawn = Image.new("RGB", (width, height))
    drawn.paste((255, 255, 255), (width // 4, height // 4, width // 2, height // 4 + 2))
    return drawn


@pytest.fixture(scope="module")
def pipe() -> FramePainterPipeline:
    pipe = FramePainterPipeline.from_editor(make_editor(), (64, 64))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def edit(pipe, image, sketch, seed=0, **options) -> Image.Image:
    return pipe(image, sketch, num_inference_steps=2, generator=torch.Generator().manual_seed(seed), **options).images[
        0
    ]


@pytest.mark.parametrize(("width", "height"), [(64, 64), (90, 160), (200, 50), (1, 1)])
def test_edits_come_back_at_the_size_of_the_image(pipe, width, height):
    assert edit(pipe, picture(width, height), drawing(width, height)).size == (width, height)


def test_pipeline_equals_the_sampler(pipe):
    image, drawn = picture(80, 60), drawing(80, 60)
    batch = EditBatch(
        source=to_unit_range(squeeze(image, (64, 64)))[None],
        control=strokes(drawn, (60, 80), (64, 64))[None],
        name=["a"],
    )
    expected = sample(pipe.editor, batch, Sampling(2), [torch.Generator().manual_seed(3)])[0]
    assert np.array_equal(np.array(edit(pipe, image, drawn, 3)), unsqueeze(expected, (60, 80)).permute(1, 2, 0).numpy())


@pytest.mark.parametrize("attention", ["matching", "cross_frame", "temporal"])
def test_saved_and_loaded_pipeline_gives_the_same_edit(tmp_path, attention):
    pipe = FramePainterPipeline.from_editor(make_editor(attention, control_frames="both", control_factor=0.7), (64, 64))
    pipe.save_pretrained(tmp_path / "pipe")
    loaded = FramePainterPipeline.from_pretrained(tmp_path / "pipe")
    assert loaded.config.control_frames == "both" and loaded.unet.config.attention == attention
    for each in (pipe, loaded):
        each.set_progress_bar_config(disable=True)
    image, drawn = picture(64, 64), drawing(64, 64)
    assert np.array_equal(np.array(edit(pipe, image, drawn)), np.array(edit(loaded, image, drawn)))


def test_batch_with_a_generator_each_equals_single_edits(pipe):
    images, drawings = [picture(64, 64, 1), picture(32, 48, 2)], [drawing(64, 64), drawing(32, 48)]
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    together = pipe(images, drawings, num_inference_steps=2, generator=generators).images
    for i, result in enumerate(together):
        alone = edit(pipe, images[i], drawings[i], seed=i + 1)
        assert result.size == images[i].size
        assert np.abs(np.array(result).astype(int) - np.array(alone)).max() <= 1


def test_without_a_generator_edits_differ(pipe):
    image, drawn = picture(64, 64), drawing(64, 64)
    first, second = (pipe(image, drawn, num_inference_steps=1).images[0] for _ in range(2))
    assert not np.array_equal(np.array(first), np.array(second))


@pytest.fixture
def seen(pipe, monkeypatch) -> list[EditBatch]:
    """Batches that reach the sampler; sampling itself is skipped."""
    batches: list[EditBatch] = []

    def sample_latents(editor, batch, settings, generators, progress):
        batches.append(batch)
        return batch.source[:, None].expand(-1, 2, -1, -1, -1)

    monkeypatch.setattr(pipeline, "sample_latents", sample_latents)
    monkeypatch.setattr(FramePainter, "decode", lambda editor, latents: latents)
    return batches


def test_each_signal_arrives_at_the_size_of_the_network(pipe, seen):
    image, drawn, edited, points = picture(80, 60), drawing(80, 60), picture(80, 60, 1), [[8, 6, 40, 30]]
    pipe(image, drawn)
    pipe(image, coarse=edited)
    pipe(image, points=np.array(points))
    assert torch.equal(seen[0].control[0], strokes(drawn, (60, 80), (64, 64)))
    assert torch.equal(seen[1].control[0], coarse_image(edited, image, (64, 64)))
    assert torch.equal(seen[2].points[0], drags(points, (60, 80), (64, 64)))
    assert [batch.control is None for batch in seen] == [False, False, True]
    assert [batch.points is None for batch in seen] == [True, True, False]


def test_signals_of_one_image_go_together(pipe, seen):
    pipe(picture(64, 64), drawing(64, 64), picture(64, 64, 1), [[1, 2, 3, 4]])
    (batch,) = seen
    white = strokes(drawing(64, 64), (64, 64), (64, 64)) > 0
    assert (batch.control[0][white] == 1).all() and (batch.control[0][~white] > 0).any()
    assert batch.points_valid.tolist() == [[True]]


def test_images_of_one_batch_may_have_different_signals(pipe, seen):
    images = [picture(64, 64), picture(32, 48)]
    edited = pipe(images, sketch=[drawing(64, 64), None], points=[None, [[1, 2, 3, 4], [5, 6, 7, 8]]]).images
    (batch,) = seen
    assert [image.size for image in edited] == [(64, 64), (32, 48)]
    assert batch.control_valid.tolist() == [True, False]
    assert batch.points_valid.tolist() == [[False, False], [True, True]]


def test_points_change_the_edit(pipe):
    image = picture(64, 64)
    one, other = (edit(pipe, image, None, points=[[8, 8, x, 32]]) for x in (24, 48))
    assert not np.array_equal(np.array(one), np.array(other))


@pytest.mark.parametrize(
    ("images", "signals", "message"),
    [
        (1, {}, "image 0 has no signal; pass a sketch, a coarse edit or points"),
        (2, {"sketch": [drawing(64, 64), None]}, "image 1 has no signal"),
        (2, {"sketch": [drawing(64, 64)]}, "2 images need a list of as many sketch, got 1"),
        (2, {"sketch": drawing(64, 64)}, "2 images need a list of as many sketch, got no list"),
        (2, {"points": [[[1, 2, 3, 4]]]}, "2 images need a list of as many points, got 1"),
        (1, {"coarse": [picture(64, 64)]}, "coarse must be a PIL image, got list"),
        (1, {"points": [[1, 2, 3, 99]]}, r"point 1 ends at \(3, 99\), outside of its image, which is 64x64"),
        (
            2,
            {"sketch": [drawing(64, 64)] * 2, "generator": [torch.Generator()]},
            "2 images need as many generators, got 1",
        ),
    ],
)
def test_what_does_not_fit_is_named_on_one_line(pipe, seen, images, signals, message):
    with pytest.raises(InputError, match=message) as caught:
        pipe(picture(64, 64) if images == 1 else [picture(64, 64)] * images, **signals)
    assert "\n" not in str(caught.value)


def test_size_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="height must be a multiple of 8, got 60"):
        FramePainterPipeline.from_editor(make_editor(), (60, 64))


def test_a_turned_photo_is_upright(pipe):
    turned = picture(60, 40)
    turned.getexif()[0x0112] = 6
    assert edit(pipe, turned, drawing(40, 60)).size == (40, 60)


def test_layers_of_a_sketch_are_united(pipe, seen):
    other = Image.new("L", (64, 64))
    other.paste(255, (5, 40, 30, 44))
    pipe(picture(64, 64), [drawing(64, 64), other])
    pipe([picture(64, 64)] * 2, [[drawing(64, 64), other], drawing(64, 64)])
    both = strokes(drawing(64, 64), (64, 64), (64, 64)).maximum(strokes(other, (64, 64), (64, 64)))
    assert torch.equal(seen[0].control[0], both) and torch.equal(seen[1].control[0], both)
    assert seen[1].control[1].sum() < both.sum()


@pytest.mark.parametrize("guidance_scale", [0.5, 1.0, 3.0])
def test_a_batch_of_three_equals_single_edits_at_any_guidance(pipe, guidance_scale):
    images, drawings = [picture(64, 64, seed) for seed in range(3)], [drawing(64, 64)] * 3
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    options = {"num_inference_steps": 2, "guidance_scale": guidance_scale, "output_type": "pt"}
    together = pipe(images, drawings, generator=generators, **options).images
    for seed, result in enumerate(together):
        generator = torch.Generator().manual_seed(seed)
        alone = pipe(images[seed], drawings[seed], generator=generator, **options).images[0]
        assert (result - alone).abs().max() <= 1 / 255


def test_control_scale_counts_without_guidance(pipe):
    image, drawn = picture(64, 64), drawing(64, 64)
    one, other = (edit(pipe, image, drawn, guidance_scale=1.0, control_scale=scale) for scale in (0.0, 5.0))
    assert not np.array_equal(np.array(one), np.array(other))


def test_output_types_are_the_same_image(pipe):
    image, drawn = picture(50, 40), drawing(50, 40)

    def run(**options):
        return pipe(image, drawn, num_inference_steps=1, generator=torch.Generator().manual_seed(0), **options)

    pil, array, tensor = np.array(run().images[0]), run(output_type="np").images[0], run(output_type="pt").images[0]
    assert array.shape == (40, 50, 3) and np.array_equal((array * 255).round().astype(np.uint8), pil)
    assert torch.equal(tensor.movedim(0, -1), torch.from_numpy(array))
    latents = run(output_type="latent").images
    assert latents.shape == (1, 2, 16, 16, 16)
    assert torch.equal(run(output_type="latent", return_dict=False)[0], latents)


def test_the_step_callback_sees_every_step_and_may_change_the_latents(pipe):
    steps = []

    def keep(caller, step, timestep, tensors):
        assert caller is pipe
        steps.append((step, float(timestep)))

    def clear(caller, step, timestep, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])}

    options = {"num_inference_steps": 3, "output_type": "latent", "generator": torch.Generator().manual_seed(0)}
    pipe(picture(64, 64), drawing(64, 64), callback_on_step_end=keep, **options)
    assert [step for step, _ in steps] == [0, 1, 2] and steps[0][1] > steps[1][1] > steps[2][1]
    assert pipe(picture(64, 64), drawing(64, 64), callback_on_step_end=clear, **options).images.abs().sum() == 0


def test_height_and_width_replace_the_size(pipe, seen):
    assert pipe(picture(50, 90), drawing(50, 90), height=96, width=48).images[0].size == (50, 90)
    assert seen[0].source.shape[-2:] == (96, 48)
    with pytest.raises(InputError, match="width must be a multiple of 8, got 50"):
        pipe(picture(50, 90), drawing(50, 90), width=50)


def test_unedited_pixels_are_kept(pipe, monkeypatch):
    image = picture(100, 80)

    def sample_latents(editor, batch, *_):
        changed = batch.source.clone()
        changed[..., 20:40, 20:40] = 0.95
        return editor.encode(torch.cat([batch.source, changed]))[None] * editor.prior.vae.config.scaling_factor

    trained = FramePainterPipeline.from_editor(build_editor("tiny", weights="random"), (64, 64))
    trained.set_progress_bar_config(disable=True)
    monkeypatch.setattr(pipeline, "sample_latents", sample_latents)
    kept = np.array(trained(image, drawing(100, 80), keep_unedited=True).images[0])
    lost = np.array(trained(image, drawing(100, 80)).images[0])
    photo = np.array(image)
    assert np.array_equal(kept[:15], photo[:15]) and np.array_equal(kept[:, 80:], photo[:, 80:])
    assert not np.array_equal(lost[:15], photo[:15])  # the VAE alone changes them
    assert (kept[30:45, 38:55] > 200).all()


def test_vae_slicing_changes_nothing(pipe):
    def run():
        generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
        images, drawn = [picture(64, 64), picture(64, 64, 1)], [drawing(64, 64)] * 2
        return pipe(images, drawn, num_inference_steps=1, generator=generators, output_type="pt").images

    whole = run()
    pipe.enable_vae_slicing()
    assert pipe.editor.prior.vae_slicing
    sliced = run()
    pipe.disable_vae_slicing()
    assert not pipe.editor.prior.vae_slicing
    assert all((a - b).abs().max() <= 1 / 255 for a, b in zip(whole, sliced, strict=True))


def test_grey_of_16_bits_and_palettes_are_read(pipe, seen):
    deep = Image.fromarray(np.full((64, 64), 128 * 257, np.uint16))
    pipe([deep, picture(64, 64).convert("P"), picture(64, 64).convert("RGBA")], [drawing(64, 64)] * 3)
    assert seen[0].source[0].unique().tolist() == pytest.approx([128 / 127.5 - 1], abs=1e-6)


def test_half_precision_runs_with_a_float32_vae(tmp_path, pipe):
    pipe.save_pretrained(tmp_path / "pipe")
    loaded = FramePainterPipeline.from_pretrained(tmp_path / "pipe", dtype=torch.bfloat16)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.unet.dtype == loaded.control_encoder.dtype == loaded.image_encoder.dtype == torch.bfloat16
    image, drawn = picture(64, 64), drawing(64, 64)
    difference = np.array(edit(loaded, image, drawn)).astype(int) - np.array(edit(pipe, image, drawn))
    assert loaded.vae.dtype == torch.float32 and np.abs(difference).mean() < 12


def test_sequential_offload_works_with_a_float32_vae():
    """Weights wait on the meta device, as on a GPU, and the VAE is cast while they are there."""
    offloaded = FramePainterPipeline.from_editor(make_editor(), (64, 64)).to(torch.bfloat16)
    offloaded.vae.register_to_config(force_upcast=True)
    expected = copy.deepcopy(offloaded)
    for each in (offloaded, expected):
        each.set_progress_bar_config(disable=True)
    for name in offloaded.model_cpu_offload_seq.split("->"):  # what enable_sequential_cpu_offload does, onto a GPU
        model = getattr(offloaded, name)
        cpu_offload(model, torch.device("cpu"), offload_buffers=len(model._parameters) > 0)
    assert next(offloaded.vae.parameters()).device.type == next(offloaded.unet.parameters()).device.type == "meta"
    image, drawn = picture(64, 64), drawing(64, 64)
    edits = [np.array(edit(each, image, drawn)).astype(int) for each in (offloaded, expected)]
    assert np.abs(edits[0] - edits[1]).max() <= 1
    assert offloaded.vae.dtype == torch.float32 and offloaded.unet.dtype == torch.bfloat16


def test_a_compiled_unet_edits_as_before(pipe):
    image, drawn = picture(64, 64), drawing(64, 64)
    compiled = FramePainterPipeline.from_editor(make_editor(), (64, 64))
    compiled.set_progress_bar_config(disable=True)
    compiled.unet = torch.compile(compiled.unet, backend="eager")
    difference = np.array(edit(compiled, image, drawn)).astype(int) - np.array(edit(pipe, image, drawn))
    assert np.abs(difference).max() <= 1


def test_the_upload_carries_a_model_card(pipe, monkeypatch):
    sent = {}

    class Hub:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, **_):
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, repo_id, folder_path, **_):
            sent[repo_id] = {path.name: path for path in folder_path.iterdir()}
            sent["card"] = sent[repo_id]["README.md"].read_text()
            return "address"

    monkeypatch.setattr(pipeline_files, "HfApi", Hub)
    assert pipe.push_to_hub("me/editor") == "address"
    assert {"model_index.json", "unet", "vae", "control_encoder", "image_encoder", "scheduler"} <= sent[
        "me/editor"
    ].keys()
    assert 'from_pretrained("me/editor"' in sent["card"] and "| match_queries | target |" in sent["card"]
    assert sent["card"].startswith("---\nlibrary_name: diffusers")


@pytest.fixture
def saved(pipe, tmp_path) -> Path:
    pipe.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def change_unet(folder: Path, change) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model_index.json").unlink(), "not a pipeline folder: it has no model_index.json"),
        (lambda f: shutil.rmtree(f / "vae"), "vae/config.json is not readable JSON .No such file"),
        (lambda f: change_unet(f, lambda t: t.pop("conv_in.bias")), "1 missing in unet .first: conv_in.bias"),
        (lambda f: change_unet(f, lambda t: t.update(a=torch.ones(1))), "1 unexpected in unet .first: a "),
        (
            lambda f: change_unet(f, lambda t: t.update({"conv_in.bias": torch.ones(1)})),
            r"1 misshapen in unet .first: conv_in.bias \(1,\) instead of \(32,\)",
        ),
        (
            lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x10" + bytes(9)),
            "is not a complete safetensors file",
        ),
        (
            lambda f: torch.save({}, f / "image_encoder" / "model.safetensors"),
            "model.safetensors is a pickle, which could run code",
        ),
        (lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(), "no diffusion_pytorch_model.safetens"),
    ],
)
def test_a_damaged_folder_is_refused_on_one_line(saved, damage, message):
    damage(saved)
    with pytest.raises(InputError, match=message) as caught:
        FramePainterPipeline.from_pretrained(saved)
    assert "\n" not in str(caught.value)


def test_an_unreachable_pipeline_is_refused_on_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="of someone/editor is neither in the hub cache .* nor reachable") as caught:
        FramePainterPipeline.from_pretrained("someone/editor")
    assert "\n" not in str(caught.value)


def test_a_path_is_no_image(pipe):
    with pytest.raises(InputError, match=r"image must be a PIL image, got str; open it with PIL.Image.open"):
        pipe("photo.jpg", drawing(64, 64))
