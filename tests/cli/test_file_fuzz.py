"""Damaged JSON and YAML files are used or refused in one line, by readers and by commands, and nothing else is written.

`FP_LIGHTNING_FUZZ=200 pytest tests/cli/test_file_fuzz.py -s` tries 200 and prints the outcomes.
"""

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from damage import COUNT, damaged, misshapen
from PIL import Image

from fp_lightning.cli.main import main
from fp_lightning.errors import InputError
from fp_lightning.evaluation.benchmarks import DragExamples
from fp_lightning.evaluation.examples import PairExamples
from fp_lightning.evaluation.study import build_study
from fp_lightning.inference.pipeline import FramePainterPipeline
from fp_lightning.media.edits import Edit, read_edit
from fp_lightning.media.images import drags, read_points
from fp_lightning.model.build import build_editor
from fp_lightning.pairs.heldout import write_list
from fp_lightning.pairs.preview import write_preview
from fp_lightning.pairs.settings import PairSettings
from fp_lightning.pairs.shards import PairStore, write_manifest, write_shard
from fp_lightning.pairs.stored import StoredVideos
from fp_lightning.scenes.scene import Scene
from fp_lightning.training.sweep import collect, found
from fp_lightning.weights.tensorfiles import open_weights

RECIPE = """
seed_everything: 3
model: {class_path: fp_lightning.FramePainterModule, init_args: {learning_rate: 1.0e-4, betas: [0.9, 0.99]}}
data: {class_path: datamodules.SketchDataModule, init_args: {pairs: pairs, size: [64, 64]}}
trainer: {max_steps: 4, accelerator: cpu, precision: 32-true}
"""
PHOTO = (48, 64)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder with every kind of JSON and YAML file that is read."""
    root = tmp_path_factory.mktemp("files")
    _write_pairs(root / "pairs")
    store = PairStore(root / "pairs")
    write_list(store, [0, 2], root / "list.json", 0)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*PHOTO, 3), np.uint8))
    for name in ("first", "second"):
        (root / name).mkdir()
        for index in range(len(store)):
            Image.new("RGB", (64, 64), "red").save(root / name / f"{store.name(index)}.png")
    build_study(root / "first", root / "second", PairExamples(root / "pairs"), root / "study")
    key = json.loads((root / "study" / "key.json").read_text())
    answers = {"format": "fp_lightning study answers 1", "study": key["study"], "rater": "a"}
    (root / "answers.json").write_text(json.dumps({**answers, "answers": {"0": {"quality": "left"}}}))
    Edit(photo, sketch=photo, points=[[1, 2, 9, 9]], settings={"num_inference_steps": 4}).save(root / "a.edit.json")
    (root / "a.points.json").write_text('{"points": [[10, 10, 30, 20], [5, 5, 6, 7]]}')
    for name, file, content in (
        ("vfd", "points.json", {"points": [[5, 6, 9, 9]]}),
        ("red", "instruction.json", {"point_operations": {"begin_points": [[1, 2]], "target_points": [[3, 4]]}}),
    ):
        (root / "drags" / name).mkdir(parents=True)
        photo.save(root / "drags" / name / ("input.png" if name == "vfd" else "original_image.png"))
        (root / "drags" / name / file).write_text(json.dumps(content))
    run = root / "sweep" / "base" / "seed-0"
    run.mkdir(parents=True)
    (run / "sweep.json").write_text('["fit", "--config", "tiny"]')
    (run / "metrics.json").write_text('{"psnr": 20.5, "by_signal": {"sketch": {"ssim": 0.5}}}')
    FramePainterPipeline.from_pretrained("tiny-editor").save_pretrained(root / "pipeline")
    weights = {"metadata": {}, "weight_map": {"conv_in.weight": "diffusion_pytorch_model.safetensors"}}
    (root / "sharded").mkdir()
    shutil.copy(root / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors", root / "sharded")
    (root / "sharded" / "model.safetensors.index.json").write_text(json.dumps(weights))
    (root / "recipe.yaml").write_text(RECIPE)
    return root


def _write_pairs(pairs: Path) -> None:
    """Write three pairs of two videos, with the records that `fp-lightning pairs` writes beside the shards."""
    records, meta = [], {"times": [0.0, 1.0]}
    for video, seeds in (("a.mp4", (0, 1)), ("b.mp4", (2,))):
        made = [replace(Scene(seed).pair(stride=4), meta=meta | {"video": video}) for seed in seeds]
        shard = write_shard(pairs, video, made)
        records.append({"video": video, "pairs": len(seeds), "rejected": {"cut": 1}, "error": None})
        saved = {"record": records[-1], "settings": _settings(), "candidates": [[0.1, 1.0, "cut"]]}
        shard.with_suffix(".json").write_text(json.dumps({**saved, "file": f"/{video}", "bytes": 1}))
    write_manifest(pairs, records, _settings())


def _drags(root: Path) -> None:
    examples = DragExamples(root / "drags")
    for index in range(len(examples.sources)):
        examples[index]


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "pairs": ("pairs/manifest.json", lambda root: PairStore(root / "pairs")[0]),
    "stored videos": ("pairs/manifest.json", lambda root: StoredVideos(root / "pairs", _settings())),
    "records": ("pairs/shards/*.json", lambda root: StoredVideos(root / "pairs", _settings()).finished("a")),
    "preview": ("pairs/shards/*.json", lambda root: write_preview(root / "pairs", count=1)),
    "edit": ("a.edit.json", lambda root: read_edit(root / "a.edit.json")),
    "points": ("a.points.json", lambda root: drags(read_points(root / "a.points.json"), PHOTO, PHOTO, "a.points.json")),
    "VFD-Bench": ("drags/vfd/points.json", _drags),
    "ReD Bench": ("drags/red/instruction.json", _drags),
    "sweep": ("sweep/base/seed-0/sweep.json", lambda root: collect(found(root / "sweep"))),
    "metrics": ("sweep/base/seed-0/metrics.json", lambda root: collect(found(root / "sweep"))),
    "pipeline": ("pipeline/model_index.json", lambda root: FramePainterPipeline.from_pretrained(root / "pipeline")),
    "networks": ("pipeline/*/*config.json", lambda root: FramePainterPipeline.from_pretrained(root / "pipeline")),
    "editor": ("pipeline/*/*config.json", lambda root: build_editor(model=str(root / "pipeline"))),
    "editor's index": ("pipeline/model_index.json", lambda root: build_editor(model=str(root / "pipeline"))),
    "shards": ("sharded/model.safetensors.index.json", lambda root: open_weights(root / "sharded", "model")),
}
COMMANDS: dict[str, tuple[str, str]] = {
    "fit": ("recipe.yaml", "fit --config {root}/recipe.yaml --print_config"),
    "predict": ("recipe.yaml", "predict --config tiny --config {root}/recipe.yaml --print_config"),
    "benchmark": ("pairs/manifest.json", "benchmark --pairs {root}/pairs --count 1 --out {out}"),
    "benchmark --list": ("list.json", "benchmark --pairs {root}/pairs --list {root}/list.json --out {out}"),
    "study": ("study/key.json", "study score {root}/study/key.json {root}/answers.json"),
    "study's answers": ("answers.json", "study score {root}/study/key.json {root}/answers.json"),
    "convert": ("pipeline/*/*config.json", "convert pipeline {root}/pipeline {out}"),
    "convert's index": ("pipeline/model_index.json", "convert pipeline {root}/pipeline {out}"),
}


def _settings() -> dict:
    return PairSettings(size=(64, 64)).to_json()


def files_of(root: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def damage(root) -> Iterator[Callable[[str, int], Path]]:
    """Damage one of the files that fit a pattern. All are restored after the test."""
    kept: dict[Path, bytes] = {}

    def restore() -> None:
        for path, data in kept.items():
            path.write_bytes(data)
        kept.clear()

    def damage(pattern: str, seed: int) -> Path:
        restore()
        rng, paths = np.random.default_rng(seed), sorted(root.glob(pattern))
        path = paths[rng.integers(len(paths))]
        data = kept[path] = path.read_bytes()
        if rng.random() < 0.3:
            path.write_bytes(damaged(data, rng))
        elif path.suffix == ".yaml":
            path.write_text(yaml.safe_dump(misshapen(yaml.safe_load(data), rng)))
        else:
            path.write_text(json.dumps(misshapen(json.loads(data), rng)))
        return path

    yield damage
    restore()


def test_readers_use_a_damaged_file_or_tell_why_not(root, damage):
    outcomes: Counter[str] = Counter()
    for seed in range(COUNT):
        name = list(READERS)[seed % len(READERS)]
        pattern, read = READERS[name]
        path, outcome, lines = damage(pattern, seed), "used", [""]
        before = files_of(root)
        try:
            read(root)
        except InputError as error:
            outcome = "refused"
            lines = str(error).splitlines()
        except Exception as error:
            raise AssertionError(
                f"seed {seed}, {name}: {type(error).__name__}: {error}\n{path.read_bytes()[:2000]!r}"
            ) from error
        finally:
            (root / "pairs" / "preview.html").unlink(missing_ok=True)
        assert len(lines) == 1 and files_of(root) == before, f"seed {seed}, {name}: {lines}"
        outcomes[f"{name}: {outcome}"] += 1
    _judge(outcomes)


@pytest.mark.parametrize("name", READERS)
def test_readers_use_undamaged_files(root, name):
    READERS[name][1](root)
    (root / "pairs" / "preview.html").unlink(missing_ok=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_use_undamaged_files(root, tmp_path, monkeypatch, name):
    words = COMMANDS[name][1].format(root=root, out=tmp_path / "out").split()
    monkeypatch.setattr(sys, "argv", ["fp-lightning", *words])
    assert exit_status() == 0


def exit_status() -> int:
    """Run `sys.argv` and return the exit status."""
    try:
        return main()
    except SystemExit as request:
        return request.code or 0


def test_commands_use_a_damaged_file_or_say_why_not_in_one_line(root, damage, tmp_path, monkeypatch, capfd):
    outcomes: Counter[str] = Counter()
    monkeypatch.chdir(tmp_path)
    for seed in range(COUNT):
        name = list(COMMANDS)[seed % len(COMMANDS)]
        pattern, words = COMMANDS[name]
        path, out = damage(pattern, seed), tmp_path / "out"
        before = files_of(root)
        monkeypatch.setattr(sys, "argv", ["fp-lightning", *words.format(root=root, out=out).split()])
        status = exit_status()
        errors = capfd.readouterr().err
        told = f"seed {seed}, {name}: {errors[-3000:]}\n{path.read_bytes()[:1500]!r}"
        lines = [line for line in errors.splitlines() if line.startswith("fp-lightning: ")]
        assert "Traceback" not in errors and "bug of fp_lightning" not in errors, told
        assert status == 0 or (status == 1 and len(lines) == 1), f"{status}, {told}"
        assert files_of(root) == before and {p.name for p in tmp_path.iterdir()} <= {"out"}, told
        assert status == 0 or not out.exists(), told
        shutil.rmtree(out, ignore_errors=True)
        outcomes[f"{name}: {'refused' if status else 'used'}"] += 1
    _judge(outcomes)


def _judge(outcomes: Counter[str]) -> None:
    print(dict(sorted(outcomes.items())))
    totals = {kind: sum(n for name, n in outcomes.items() if name.endswith(kind)) for kind in ("used", "refused")}
    assert min(totals.values()) > 0
