"""Sweeps: which commands run, which are skipped, and the table of their metrics."""

import json
import os
import subprocess
import sys
from math import inf, isinf, sqrt
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from commandline import call_forked, run_forked

from fp_lightning.cli.main import main
from fp_lightning.errors import InputError
from fp_lightning.scenes.procedural import write_scene_pairs
from fp_lightning.training.recipe_files import RECIPES
from fp_lightning.training.sweep import Run, as_csv, collect, found, markdown, plan, summarise, sweep

# --- planning


def test_a_run_is_the_stacked_recipes_its_arm_the_options_and_its_seed(tmp_path):
    base, arm, both = "tiny", "ablations/prior_off", ["--data.batch_size=2"]
    _, run = plan(["base", arm], [7], tmp_path, [base, "signals/sketch"], both)
    assert run.folder == tmp_path / "prior_off" / "seed-7"
    assert list(run.words) == [
        *("--config", str(RECIPES / "tiny.yaml"), "--config", str(RECIPES / "signals" / "sketch.yaml")),
        *("--config", str(RECIPES / "ablations" / "prior_off.yaml")),
        "--data.batch_size=2",
        *("--seed_everything", "7", "--model.seed", "7", "--model.editor.seed", "7", "--data.seed", "7"),
        *("--trainer.default_root_dir", str(run.folder)),
    ]


def test_the_base_adds_no_recipe(tmp_path):
    (run,) = plan(["base"], [0], tmp_path, ["tiny"])
    assert run.arm == "base" and run.words.count("--config") == 1


def test_runs_go_seed_by_seed(tmp_path):
    runs = plan(["base", "ablations/prior_off"], [2, 1], tmp_path, ["tiny"])
    assert [(run.arm, run.seed) for run in runs] == [("base", 2), ("prior_off", 2), ("base", 1), ("prior_off", 1)]


def test_arms_keep_the_whole_name_of_their_recipe(tmp_path):
    arms = ["ablations/squared_0.1", "recipes/ablations/cross_entropy_0.1.yaml", "ablations/squared_10"]
    assert [run.arm for run in plan(arms, [0], tmp_path, ["tiny"])] == [
        "squared_0.1",
        "cross_entropy_0.1",
        "squared_10",
    ]


@pytest.mark.parametrize(
    ("arms", "seeds"),
    [
        (["base", "base"], [0]),
        (["ablations/prior_off", "recipes/ablations/prior_off.yaml"], [0]),
        (["base"], [0, 0]),
        ([], [0]),
        (["base"], []),
    ],
)
def test_arms_and_seeds_come_once_each(tmp_path, arms, seeds):
    with pytest.raises(InputError, match="a sweep needs at least one arm and one seed, none twice"):
        plan(arms, seeds, tmp_path, ["tiny"])


@pytest.mark.parametrize(("arms", "base"), [(["ablations/no_such"], ["tiny"]), (["base"], ["no_such"])])
def test_an_unknown_recipe_is_named(tmp_path, arms, base):
    with pytest.raises(InputError, match="no recipe or file .*no_such; the recipes are"):
        plan(arms, [0], tmp_path, base)


# --- a run and its folder


def run_in(folder: Path, *words: str, arm: str = "base", seed: int = 0, metrics: dict | None = None) -> Run:
    """A run, with the files that it leaves if it has metrics."""
    if metrics is not None:
        folder.mkdir(parents=True)
        (folder / "sweep.json").write_text(json.dumps(words))
        (folder / "metrics.json").write_text(json.dumps(metrics))
    return Run(arm, seed, folder, words)


def test_a_run_is_finished_once_it_has_metrics(tmp_path):
    assert not run_in(tmp_path / "a").finished()
    assert run_in(tmp_path / "b", "--x", metrics={"n": 1}).finished()


def test_a_folder_of_other_settings_is_refused(tmp_path):
    run_in(tmp_path / "a", "--x", "1", metrics={"n": 1})
    with pytest.raises(InputError, match="holds a run with different settings; choose another --out or delete it"):
        run_in(tmp_path / "a", "--x", "2").finished()


def test_nothing_runs_if_any_folder_has_other_settings(tmp_path, monkeypatch):
    monkeypatch.setattr("fp_lightning.training.sweep.subprocess", None)
    run_in(tmp_path / "b/seed-0", "--x", "1", metrics={"n": 1})
    with pytest.raises(InputError, match="different settings"):
        sweep([run_in(tmp_path / "a/seed-0"), run_in(tmp_path / "b/seed-0", "--x", "2")])
    assert not (tmp_path / "a").exists()


def test_collect_flattens_what_is_nested_and_leaves_out_what_is_no_number(tmp_path):
    metrics = {"psnr": 20.5, "n": 3, "lpips": None, "ok": True, "name": "x", "layers": {"all": {"error": 7.0}}}
    runs = [run_in(tmp_path / "a", arm="a", seed=4, metrics=metrics), run_in(tmp_path / "b", arm="b")]
    assert collect(runs) == [{"arm": "a", "seed": 4, "psnr": 20.5, "n": 3, "layers.all.error": 7.0}]


def test_the_table_has_a_column_for_every_number_of_any_run():
    rows = [{"arm": "a", "seed": 0, "psnr": 1.0}, {"arm": "b", "seed": 0, "ssim": 0.5}]
    assert as_csv(rows).splitlines() == ["arm,seed,psnr,ssim", "a,0,1.0,", "b,0,,0.5"]


def test_the_table_keeps_the_runs_of_earlier_sweeps_in_the_folder(tmp_path):
    earlier = run_in(tmp_path / "old" / "seed-12", "--x", arm="old", seed=12, metrics={"psnr": 1.0})
    later = run_in(tmp_path / "base" / "seed-0", "--y", metrics={"psnr": 2.0})
    run_in(tmp_path / "base" / "seed-1")
    assert found(tmp_path) == [later, earlier]
    assert [row["arm"] for row in sweep([later])] == ["base"]
    assert (tmp_path / "results.csv").read_text().splitlines() == ["arm,seed,psnr", "base,0,2.0", "old,12,1.0"]


# --- statistics

ROWS = [
    *({"arm": "base", "seed": seed, "psnr": value} for seed, value in ((0, 1.0), (1, 2.0), (2, 3.0))),
    *({"arm": "off", "seed": seed, "psnr": value} for seed, value in ((2, 2.5), (0, 0.4), (1, 1.6))),
    {"arm": "once", "seed": 1, "psnr": 5.0},
]
T_2 = 4.302653  # 97.5 % quantile of Student's t with two degrees of freedom


def test_the_interval_of_a_mean_is_students():
    base = summarise(ROWS, "psnr")[0]
    assert (base.arm, base.seeds, base.difference) == ("base", 3, None)
    assert base.mean == 2.0
    assert base.interval == pytest.approx((2 - T_2 / sqrt(3), 2 + T_2 / sqrt(3)), rel=1e-6)


def test_differences_are_between_the_same_seeds():
    off = summarise(ROWS, "psnr")[1]
    half = T_2 * 0.1 / sqrt(3)  # of -0.6, -0.4 and -0.5
    assert off.difference == pytest.approx(-0.5)
    assert off.difference_interval == pytest.approx((-0.5 - half, -0.5 + half), rel=1e-6)


def test_a_single_seed_has_no_finite_interval():
    once = summarise(ROWS, "psnr")[2]
    assert once.interval == (-inf, inf)
    assert once.difference == 3.0 and isinf(once.difference_interval[1])


def test_without_a_common_seed_there_is_no_difference():
    rows = [{"arm": "base", "seed": 0, "psnr": 1.0}, {"arm": "off", "seed": 1, "psnr": 2.0}]
    assert summarise(rows, "psnr")[1].difference is None


def test_another_arm_may_be_the_reference():
    base, off, _ = summarise(ROWS, "psnr", reference="off")
    assert base.difference == pytest.approx(0.5) and off.difference is None


def test_a_metric_that_no_run_has_is_an_error():
    with pytest.raises(InputError, match=r"no run has the metric lpips; results\.csv lists the available ones"):
        summarise(ROWS, "lpips")


def test_the_markdown_table_marks_differences_whose_interval_excludes_zero():
    half = f"{T_2 * 0.1 / sqrt(3):.3f}"
    assert markdown(ROWS, ["psnr"]).splitlines() == [
        "| arm | seeds | psnr | − base |",
        "|---|---|---|---|",
        "| base | 3 | 2.000 ± 2.484 |  |",
        f"| off | 3 | 1.500 ± {T_2 * sqrt(1.11) / sqrt(3):.3f} | **-0.500** ± {half} |",
        "| once | 1 | 5.000 ± inf | +3.000 ± inf |",
    ]


def test_an_arm_without_the_metric_has_dashes():
    rows = [*ROWS, {"arm": "new", "seed": 0, "ssim": 0.5}]
    assert markdown(rows, ["psnr"]).splitlines()[-1] == "| new | 1 | – | – |"


# --- from the recipes to the table


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of the base and of an arm that cannot run: its runs and its error.

    The arm that cannot run is a new interpreter, as in use; the commands of the other are forked.
    """
    folder = tmp_path_factory.mktemp("sweep")
    write_scene_pairs(folder / "pairs", 8, (32, 32), workers=1)
    recipe = {
        "model": {
            "init_args": {
                "editor": {"init_args": {"weights": "random"}},
                "sampling": {"num_inference_steps": 1},
            }
        },
        "data": {"init_args": {"pairs": str(folder / "pairs"), "size": [32, 32], "batch_size": 2, "overfit": True}},
        "trainer": {"max_steps": 1, "val_check_interval": 1},
    }
    (folder / "minute.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "broken.yaml").write_text("model: {init_args: {editor: {init_args: {atention: matching}}}}")
    base = ["tiny", str(folder / "minute.yaml")]
    runs = plan([str(folder / "broken.yaml"), "base"], [0], folder / "runs", base, ["--data.limit_pairs=2"])

    def run(command, **options):
        runner = subprocess.run if str(folder / "broken.yaml") in command else run_forked
        return runner(command, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fp_lightning.training.sweep.subprocess", SimpleNamespace(run=run))
        with pytest.raises(InputError) as error:
            sweep(runs)
    return SimpleNamespace(broken=runs[0], base=runs[1], complaint=str(error.value), table=folder / "runs/results.csv")


def test_a_failed_run_is_one_line_that_names_its_log(swept):
    log = swept.broken.folder / "run.log"
    assert swept.complaint == f"fit of broken with seed 0 failed; see {log}"
    assert "'atention' is not accepted" in log.read_text() and not swept.broken.metrics.exists()


def test_the_others_go_on_and_their_numbers_are_in_the_table(swept):
    metrics = json.loads(swept.base.metrics.read_text())
    header, row = (line.split(",") for line in swept.table.read_text().splitlines())
    values = dict(zip(header, row, strict=True))
    assert (values["arm"], values["seed"], values["n"]) == ("base", "0", "2")
    assert float(values["psnr"]) == metrics["psnr"]


def test_a_run_has_the_seed_and_the_options_of_the_plan(swept):
    config = yaml.safe_load((swept.base.folder / "config.fit.yaml").read_text())
    assert config["seed_everything"] == config["data"]["init_args"]["seed"] == 0
    assert config["data"]["init_args"]["limit_pairs"] == 2
    assert (swept.base.folder / "checkpoints" / "last.ckpt").is_file()


def test_what_is_finished_is_not_run_again(swept, monkeypatch):
    monkeypatch.setattr("fp_lightning.training.sweep.subprocess", None)
    times = {path: os.stat(path).st_mtime_ns for path in swept.base.folder.rglob("*")}
    (row,) = sweep([swept.base])
    assert row["psnr"] == json.loads(swept.base.metrics.read_text())["psnr"]
    assert {path: os.stat(path).st_mtime_ns for path in swept.base.folder.rglob("*")} == times


@pytest.mark.filterwarnings("ignore")
def test_an_interrupted_run_resumes_from_its_checkpoint(swept, monkeypatch):
    commands = []

    def in_process(command, **options):
        commands.append(command[3:])
        monkeypatch.setattr(sys, "argv", ["fp-lightning", *command[3:]])
        return SimpleNamespace(returncode=main())

    monkeypatch.setattr("fp_lightning.training.sweep.subprocess", SimpleNamespace(run=in_process))
    before = json.loads(swept.base.metrics.read_text())["psnr"]
    swept.base.metrics.unlink()
    swept.base.execute()
    last = ["--ckpt_path", str(swept.base.folder / "checkpoints" / "last.ckpt")]
    assert [(words[0], words[-2:]) for words in commands] == [("fit", last), ("test", last)]
    assert json.loads(swept.base.metrics.read_text())["psnr"] == pytest.approx(before, abs=1e-3)


def test_jobs_share_the_cores(tmp_path, monkeypatch):
    threads = []

    def pretend(command, env, **options):
        threads.append(env["OMP_NUM_THREADS"])
        folder = Path(command[-1] if command[3] == "fit" else command[-3])
        (folder / "metrics.json").write_text('{"psnr": 1}')
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr("fp_lightning.training.sweep.subprocess", SimpleNamespace(run=pretend))
    monkeypatch.setattr("fp_lightning.training.sweep.os.sched_getaffinity", lambda _: set(range(6)))
    rows = sweep(plan(["base"], [0, 1], tmp_path, ["tiny"]), jobs=2)
    assert [row["seed"] for row in rows] == [0, 1]
    assert set(threads) == {"3"}


def sweep_by_ray(out: Path) -> None:
    """Sweep runs of which one fails, and write the error."""
    import ray

    class Quick(Run):
        def execute(self, threads=None):
            if self.arm == "bad":
                raise InputError("fit of bad failed")
            self.folder.mkdir(parents=True)
            (self.folder / "sweep.json").write_text("[]")
            self.metrics.write_text(json.dumps({"psnr": 20.0 + self.seed}))

    arms = ("bad", 0), ("good", 0), ("good", 1)
    runs = [Quick(arm, seed, out / arm / f"seed-{seed}", ()) for arm, seed in arms]
    ray.init(num_cpus=1, include_dashboard=False)
    try:
        sweep(runs, 1, "ray")
    except InputError as error:
        (out / "error").write_text(str(error))
    ray.shutdown()


def test_ray_runs_them_all_and_reports_failures(tmp_path):
    pytest.importorskip("ray.tune", reason="Ray Tune is not installed: pip install 'fp-lightning[ray]'")
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(tmp_path / "home")}
    call_forked(sweep_by_ray, tmp_path, environment=environment)
    assert (tmp_path / "error").read_text() == "fit of bad failed"
    assert (tmp_path / "results.csv").read_text().splitlines() == ["arm,seed,psnr", "good,0,20.0", "good,1,21.0"]
