"""README, docs and the heads of recipes: every command, option, recipe, name, path and link in them exists, and the
site builds."""

import ast
import contextlib
import importlib
import inspect
import io
import re
import shlex
import shutil
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from fp_lightning.cli.main import main
from fp_lightning.errors import InputError
from fp_lightning.training.recipe_files import recipe_path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "notebooks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
STACKED = {"fit", "validate", "test", "predict", "plan"}  # commands that take recipes and the options in them
PACKAGES = r"(?:fp_lightning|callbacks|datamodules)"
LONGEST_README = 150  # lines


# What a page says, by kind


def fences(text: str) -> list[tuple[str, str]]:
    """(language, content) of every code block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S)


def code_spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def shell_lines(text: str) -> list[str]:
    """The lines of code blocks without a language, and code spans; continued lines joined, comments left out."""
    blocks = "\n".join(content for language, content in fences(text) if not language).replace("\\\n", " ")
    return [re.sub(r"(^|\s)#.*", "", line).strip() for line in [*blocks.splitlines(), *code_spans(text)]]


def head_of(recipe: Path) -> str:
    """The comments that open a recipe as a page: their indented lines are a code block."""
    lines = [line[1:] for line in recipe.read_text().split("\nmodel:")[0].splitlines() if line.startswith("#")]
    code = [line.strip() for line in lines if line.startswith("   ")]
    prose = [line for line in lines if not line.startswith("   ")]
    return "\n".join(prose) + "\n```\n" + "\n".join(code) + "\n```\n"


# What there is


@cache
def help_of(*words: str) -> str:
    """The text of `fp-lightning WORDS --help`; empty where the words are refused."""
    said, before = io.StringIO(), sys.argv
    sys.argv = ["fp-lightning", *words, "--help"]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
            status = main()
    except SystemExit as error:
        status = error.code
    finally:
        sys.argv = before
    return said.getvalue() if status in (0, None) else ""


@cache
def commands() -> tuple[str, ...]:
    return tuple(re.findall(r"^  ([a-z]+) ", help_of(), re.M))


@cache
def options_of(command: str, kind: str = "") -> frozenset[str]:
    return frozenset(re.findall(r"--[a-z][\w-]*", help_of(*filter(None, (command, kind)))))


@cache
def stacked_options() -> frozenset[str]:
    """The options of `fit` that a page may name: those of what recipes build."""
    from lightning import Trainer

    from datamodules import AllSignalsDataModule, EditDataModule
    from datamodules.signals import Coarse, Points, Sketch
    from fp_lightning import FramePainterModule, build_editor
    from fp_lightning.inference.sampler import Sampling
    from fp_lightning.training.distillation import DistillationModule

    built = {
        "model": [FramePainterModule, DistillationModule],
        "model.editor": [build_editor],
        "model.sampling": [Sampling],
        "data": [AllSignalsDataModule, EditDataModule],
        "data.sketch": [Sketch],
        "data.coarse": [Coarse],
        "data.points": [Points],
        "trainer": [Trainer],
    }
    named = {f"--{path}.{name}" for path, all_of in built.items() for it in all_of for name in signature(it)}
    return frozenset(named | {"--config", "--ckpt_path", "--seed_everything", "--help"})


def signature(built) -> list[str]:
    return [name for name, p in inspect.signature(built).parameters.items() if p.kind is not p.VAR_KEYWORD]


@cache
def every_option() -> frozenset[str]:
    kinds = [(name, "") for name in commands() if name not in STACKED - {"plan"}]
    kinds += [("convert", kind) for kind in ("released", "checkpoint", "pipeline", "lora")]
    kinds += [("study", kind) for kind in ("build", "score")] + [("bench", "gpu")]
    return stacked_options().union(*(options_of(*kind) for kind in kinds))


@cache
def targets() -> frozenset[str]:
    return frozenset(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))


def exists(dotted: str) -> bool:
    """Whether a module, or a name in one, can be imported."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for name in parts[count:]:
            if not hasattr(found, name):
                return False
            found = getattr(found, name)
        return True
    return False


# What is wrong


def wrong_recipes(names: list[str]) -> list[str]:
    wrong = []
    for name in names:
        if name.startswith("runs/") and name.endswith("/config.fit.yaml"):  # what a run writes
            continue
        try:
            recipe_path(name)
        except InputError:
            wrong.append(f"no recipe {name}")
    return wrong


def after(option: str, words: list[str]) -> list[str]:
    return [word for before, word in pairwise(words) if before == option]


def wrong_in_command(words: list[str]) -> list[str]:
    """What does not exist in the words after `fp-lightning`."""
    command = words[0]
    if command not in commands():
        return [f"no command {command}"]
    kind = next((word for word in words[1:2] if command in ("convert", "study") or word == "gpu"), "")
    known = options_of(command, kind)
    if kind and not known:
        return [f"no command {command} {kind}"]
    if command in STACKED:
        known = stacked_options() | (known if command == "plan" else frozenset())
    named = {word.split("=")[0].removesuffix("+") for word in words if word.startswith("--")}
    wrong = [f"{command} has no option {name}" for name in sorted(named - known)]
    recipes = [word for word in after("--config", words) if word not in ("RECIPE", "NAME")]
    if command == "sweep":
        arms = words[1 : next((i for i, word in enumerate(words) if word.startswith("--")), None)]
        recipes += [arm for arm in arms if arm != "base"] + after("--base", words)
    return wrong + wrong_recipes(recipes)


def wrong_commands(text: str) -> list[str]:
    wrong = []
    for line in shell_lines(text):
        called = re.search(r"(?:^|\s)(?:fp-lightning|-m fp_lightning)\s+(\w.*)", line)
        words = [word for word in shlex.split(called[1]) if word not in ("…", "...")] if called else []
        if words and words[0] != "COMMAND":
            wrong += wrong_in_command(words)
        elif line.startswith("--"):
            words = shlex.split(line)
            names = {word.split("=")[0].removesuffix("+") for word in words if word.startswith("--")}
            wrong += [f"no command has the option {name}" for name in sorted(names - every_option())]
            wrong += wrong_recipes([word for word in after("--config", words) if "…" not in word])
        elif (target := re.match(r"make ([a-z-]+)", line)) and target[1] not in targets():
            wrong.append(f"no target {target[1]} in the Makefile")
    return wrong


def wrong_names(text: str) -> list[str]:
    """Names of the project's modules, classes and functions, and the files and recipes that code spans name."""
    spans = code_spans(text)
    code = "\n".join([*spans, *(content for _, content in fences(text))])
    dotted = set(re.findall(rf"(?<![\w/.-]){PACKAGES}(?:\.\w+)+(?![\w/])", code))
    for language, content in fences(text):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(content)):
            if isinstance(node, ast.ImportFrom) and re.match(rf"{PACKAGES}\b", node.module or ""):
                dotted |= {f"{node.module}.{alias.name}" for alias in node.names}
    wrong = [f"no {name} to import" for name in sorted(dotted) if not exists(name)]
    top = rf"(?:{PACKAGES}|tests|recipes|notebooks|docs)/[\w./-]*"
    wrong += [f"no file {span}" for span in spans if re.fullmatch(top, span) and not (ROOT / span).exists()]
    return wrong + wrong_recipes([s for s in spans if re.fullmatch(r"(signals|hardware|loggers|ablations)/[\w.]+", s)])


def slug(heading: str) -> str:
    """A heading's anchor, as forges and MkDocs make it."""
    return re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())


def anchors(page: Path) -> list[str]:
    return [slug(heading) for heading in re.findall(r"^#+ (.*)$", page.read_text(), re.M)]


def wrong_links(page: Path, text: str) -> list[str]:
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(f"dead link {link}")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_page_names_only_what_exists(page):
    text = page.read_text()
    assert wrong_commands(text) + wrong_names(text) + wrong_links(page, text) == []


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_head_of_a_recipe_names_only_what_exists(recipe):
    text = head_of(recipe)
    assert recipe.read_text().startswith("# ")
    assert wrong_commands(text) + wrong_names(text) == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("```\nfp-lightning paint --out x\n```\n", "no command paint"),
        ("`OMP_NUM_THREADS=1 fp-lightning paint`", "no command paint"),
        ("```\nfp-lightning pairs a.mp4 --speed 3  # fast\n```\n", "pairs has no option --speed"),
        ("```\nfp-lightning convert photo a b\n```\n", "no command convert photo"),
        ("```\nfp-lightning fit --config tiny \\\n    --config signals/voice\n```\n", "no recipe signals/voice"),
        ("```\nfp-lightning fit --config tiny --data.pears DIR\n```\n", "fit has no option --data.pears"),
        ("```\nfp-lightning sweep base ablations/nothing --out runs\n```\n", "no recipe ablations/nothing"),
        ("| more | `--model.editor.speed 2` |", "no command has the option --model.editor.speed"),
        ("```\nmake coffee\n```\n", "no target coffee in the Makefile"),
        ("`hardware/one_4gb`", "no recipe hardware/one_4gb"),
        ("`fp_lightning/model/sketch.py`", "no file fp_lightning/model/sketch.py"),
        ("`fp_lightning.VideoPear`", "no fp_lightning.VideoPear to import"),
        ("```python\nfrom fp_lightning.media.edits import Undo\n```\n", "no fp_lightning.media.edits.Undo to import"),
    ],
)
def test_a_planted_fault_is_found(text, wrong):
    assert wrong_commands(text) + wrong_names(text) == [wrong]


def test_a_planted_dead_link_is_found():
    text = "[one](docs/pears.md) [two](docs/pairs.md#pears) [three](docs/pairs.md#options) [four](https://example.org)"
    assert wrong_links(ROOT / "README.md", text) == ["dead link docs/pears.md", "dead link docs/pairs.md#pears"]


def test_every_command_is_in_the_documentation():
    said = (ROOT / "docs" / "index.md").read_text()
    assert [name for name in commands() if f"`fp-lightning {name}`" not in said] == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= LONGEST_README


# The site


def build_site(root: Path, out: Path) -> None:
    """As `make docs` does; raises where MkDocs warns."""
    pytest.importorskip("mkdocs", reason="mkdocs is missing: pip install -e '.[docs]'")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    config = load_config(str(root / "mkdocs.yml"), strict=True, site_dir=str(out))
    config.plugins.on_startup(command="build", dirty=False)
    build(config)


def test_the_site_builds_strictly_with_every_module_and_nothing_of_the_internet(tmp_path):
    build_site(ROOT, tmp_path)
    pages = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*.html")}
    for package in ("fp_lightning", "datamodules", "callbacks"):
        for path in (ROOT / package).rglob("[!_]*.py"):
            *folder, name = path.relative_to(ROOT).with_suffix("").parts
            assert f'id="{".".join([*folder, name])}"' in pages[f"reference/{'.'.join(folder)}.html"]
    loaded = r"<(?:script|img|iframe)[^>]*\ssrc=.?(?:https?:)?//|<link[^>]*\shref=.?(?:https?:)?//"
    assert [name for name, page in pages.items() if re.search(loaded, page)] == []
    assert "FramePainterPipeline" in pages["reference/index.html"]


@pytest.fixture
def small_project(tmp_path) -> Path:
    """This project's documentation beside a package of one small module, so that it builds in a second."""
    for name in ("docs", "notebooks", "recipes"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    for package in ("fp_lightning", "datamodules", "callbacks"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text('"""A package."""\n')
        (tmp_path / package / "one.py").write_text('"""A module."""\n')
    return tmp_path


@pytest.mark.parametrize(
    ("page", "text"),
    [
        (None, ""),
        ("pairs.md", "[planted](pears.md)"),
        ("pairs.md", "[planted](signals.md#pears)"),
        ("pairs.md", "[planted](../notebooks/pears.ipynb)"),
        ("pears.md", "# A page that the navigation lacks"),
    ],
    ids=["as it is", "page", "anchor", "file beside docs", "not in the navigation"],
)
def test_a_dead_link_or_a_lost_page_fails_the_build(small_project, page, text):
    if page is None:
        build_site(small_project, small_project / "site")
        assert (small_project / "site" / "reference" / "callbacks.html").is_file()
        return
    with (small_project / "docs" / page).open("a") as file:
        file.write(f"\n{text}\n")
    with pytest.raises(BaseException, match="strict mode"):
        build_site(small_project, small_project / "site")
