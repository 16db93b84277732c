"""Latents on disk change no loss, are never stale, and survive interruptions."""

from dataclasses import replace

import lightning as L
import pytest
import torch
from conftest import losses_of, make_batch, make_editor

from datamodules import SketchDataModule
from fp_lightning.errors import InputError
from fp_lightning.model.fingerprint import fingerprint
from fp_lightning.pairs.latents import FIELDS, LatentStore
from fp_lightning.pairs.shards import write_manifest, write_shard
from fp_lightning.scenes.scene import Scene
from fp_lightning.training.module import FramePainterModule
from fp_lightning.types import EditBatch


def loss(editor, batch, seed: int = 3):
    return losses_of(editor, batch, seed)


def calls(monkeypatch, editor) -> list[str]:
    """The calls of the VAE's encoder and of the image encoder from now on."""
    seen = []
    for owner, name in ((editor.prior.vae, "encode"), (editor.prior.image_encoder, "forward")):
        method = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, _m=method, _n=name, **k: seen.append(_n) or _m(*a, **k))
    return seen


def samples(batch: EditBatch) -> list[EditBatch]:
    ones = [batch.map(lambda x, i=i: x[i : i + 1]) for i in range(len(batch))]
    return [replace(one, name=[name]) for one, name in zip(ones, batch.name, strict=True)]


@pytest.mark.parametrize("draws", [None, 1, 3])
def test_one_sample_has_the_same_loss_to_the_last_bit(draws):
    editor, batch = make_editor(augmentation_draws=draws).train(), make_batch(1, size=32)
    plain, kept = loss(editor, batch), loss(editor, editor.with_latents(batch))
    assert plain.total == kept.total and plain.matching == kept.matching


@pytest.mark.parametrize("draws", [None, 3])
def test_a_batch_has_the_same_loss_but_for_rounding(draws):
    """Samples are encoded one by one for the disk and together in a step, which may round another way."""
    editor, batch = make_editor(augmentation_draws=draws).train(), make_batch(3, size=32, points=2)
    alone = [editor.with_latents(one) for one in samples(batch)]
    torch.testing.assert_close(loss(editor, batch).total, loss(editor, EditBatch.cat(alone)).total, rtol=1e-5, atol=0)


def test_with_drawn_noise_a_step_calls_no_frozen_network(monkeypatch):
    editor, batch = make_editor(augmentation_draws=2).train(), make_batch(2, size=32)
    kept = editor.with_latents(batch)
    seen = calls(monkeypatch, editor)
    loss(editor, kept)
    assert seen == []
    loss(editor, batch)
    assert set(seen) == {"encode", "forward"}


def test_new_noise_still_encodes_the_source_and_nothing_else(monkeypatch):
    editor, batch = make_editor().train(), make_batch(2, size=32)
    kept = editor.with_latents(batch)
    seen = calls(monkeypatch, editor)
    loss(editor, kept)
    assert seen == ["encode"]


def test_drawn_noises_differ_among_draws_and_samples_and_repeat():
    editor, batch = make_editor(augmentation_draws=4), make_batch(2, size=32)
    made = editor.with_latents(batch)
    assert made.augmentation.shape == (2, 4) and len(made.augmentation.unique()) == 8
    assert torch.equal(made.image_latents, editor.with_latents(batch).image_latents)


def test_what_was_written_is_read(tmp_path):
    editor, batch = make_editor(augmentation_draws=2), make_batch(1, size=32)
    store, made = LatentStore(tmp_path, {"a": 1}), editor.with_latents(batch)
    store.write("pair", made)
    assert store.keys() == {"pair"}
    read = store.read("pair", batch)
    assert all(torch.equal(getattr(read, name), getattr(made, name)) for name in FIELDS)


def test_other_settings_are_another_folder(tmp_path):
    editor = make_editor(augmentation_draws=2)
    settings = editor.latent_settings()
    changed = [
        make_editor(augmentation_draws=3).latent_settings(),
        make_editor(augmentation_draws=2, augmentation_std=0.1).latent_settings(),
        make_editor().latent_settings(),
        {**settings, "size": [32, 32]},
    ]
    with torch.no_grad():
        editor.prior.vae.quant_conv.bias[0] += 1e-3
    changed.append(editor.latent_settings())
    assert len({LatentStore(tmp_path, each).folder for each in (settings, *changed)}) == 6


def test_the_fingerprint_is_of_the_weights():
    assert fingerprint(make_editor().prior.vae) == fingerprint(make_editor().prior.vae)


def test_images_of_the_same_name_that_changed_are_noticed(tmp_path):
    editor, batch = make_editor(), make_batch(1, size=32)
    store = LatentStore(tmp_path, {})
    store.write("pair", editor.with_latents(batch))
    with pytest.raises(InputError, match="computed from another image of this name; delete"):
        store.read("pair", replace(batch, source=-batch.source))


def test_a_damaged_file_is_named(tmp_path):
    store, batch = LatentStore(tmp_path, {}), make_batch(1, size=32)
    (store.folder / "pair.safetensors").write_bytes(b"12")
    with pytest.raises(InputError, match=r"pair\.safetensors is missing or damaged; delete it"):
        store.read("pair", batch)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    for video in range(3):
        write_shard(root, str(video), [Scene(video * 2 + i, (32, 32)).pair() for i in range(2)])
    write_manifest(root, [{"video": str(v), "pairs": 2, "rejected": {}, "error": None} for v in range(3)])
    return str(root)


def fit(pairs, tmp_path, latents, **options):
    """Losses of three steps, and the data module."""
    data = SketchDataModule(
        pairs=pairs, size=(32, 32), batch_size=2, val_fraction=0.34, test_fraction=0, latents=latents, **options
    )
    module, seen = FramePainterModule(make_editor(augmentation_draws=2), learning_rate=1e-3), []
    step = module.training_step
    module.training_step = lambda *a: seen.append(step(*a)) or seen[-1]
    trainer = L.Trainer(
        default_root_dir=tmp_path, max_steps=3, accelerator="cpu", logger=False, limit_val_batches=1,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, data)
    return [float(x.detach()) for x in seen], data


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fit_makes_them_once_and_trains_the_same(pairs, tmp_path, workers):
    plain, _ = fit(pairs, tmp_path, None)
    kept, data = fit(pairs, tmp_path, str(tmp_path / "latents"), num_workers=workers)
    assert kept == pytest.approx(plain, rel=1e-4)
    folder = data.latent_store.folder
    before = times(folder)
    assert len(before) == 6 + 1
    fit(pairs, tmp_path, str(tmp_path / "latents"))
    assert times(folder) == before


def test_an_interrupted_filling_goes_on(pairs, tmp_path):
    _, data = fit(pairs, tmp_path, str(tmp_path / "latents"))
    folder = data.latent_store.folder
    first, second, *rest = sorted(folder.glob("*.safetensors"))
    first.rename(folder / f".{first.name}.1.partial")
    second.unlink()
    before = times(folder)
    fit(pairs, tmp_path, str(tmp_path / "latents"))
    assert first.exists() and second.exists()
    assert all(times(folder)[path.name] == before[path.name] for path in rest)


def test_mirrored_pairs_have_their_own(pairs, tmp_path):
    _, data = fit(pairs, tmp_path, str(tmp_path / "latents"), flip=True)
    keys = data.latent_store.keys()
    assert len(keys) == 6 + 4 and sum(key.endswith(".mirrored") for key in keys) == 4


def test_beside_a_bucket_is_refused():
    with pytest.raises(InputError, match="data.latents cannot be beside s3://bucket/pairs"):
        SketchDataModule(pairs="s3://bucket/pairs", latents="beside")


def test_a_folder_that_cannot_be_written_names_the_option(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"cannot write into {tmp_path}/file/.*; choose another .*--data.latents"):
        LatentStore(tmp_path / "file" / "latents", {})


def test_two_runs_share_the_filling(pairs, tmp_path, monkeypatch):
    """What another process has written meanwhile is left as it is."""
    _, data = fit(pairs, tmp_path, str(tmp_path / "latents"))
    folder = data.latent_store.folder
    made = {path: path.read_bytes() for path in folder.glob("*.safetensors")}
    for path in made:
        path.unlink()
    encoded, encode = [], make_editor().__class__.with_latents

    def with_latents(self, batch):
        encoded.append(batch.name)
        if len(encoded) == 1:  # the other run writes all but this pair
            for path, content in made.items():
                if path.stem != batch.name[0]:
                    path.write_bytes(content)
        return encode(self, batch)

    monkeypatch.setattr(make_editor().__class__, "with_latents", with_latents)
    fit(pairs, tmp_path, str(tmp_path / "latents"))
    assert len(encoded) == 1
    assert {path: path.read_bytes() for path in made} == made


def test_ranks_cover_a_cache_together_whatever_each_has_seen(pairs):
    data = SketchDataModule(pairs=pairs, size=(32, 32), val_fraction=0.34, test_fraction=0)
    data.setup("fit")
    keys = [key for key, _ in data.missing_latents(set())]
    seen_later = {keys[0], keys[3]}  # written by another run between the two ranks' looks
    shares = [data.missing_latents(set(), 0, 2), data.missing_latents(seen_later, 1, 2)]
    assert {key for share in shares for key, _ in share} | seen_later == set(keys)
    assert not {key for key, _ in shares[0]} & {key for key, _ in shares[1]}


def test_runs_fill_in_different_orders(pairs):
    data = SketchDataModule(pairs=pairs, size=(32, 32), val_fraction=0.34, test_fraction=0, flip=True)
    data.setup("fit")
    assert len({tuple(data.missing_latents(set()).pairs) for _ in range(5)}) > 1
