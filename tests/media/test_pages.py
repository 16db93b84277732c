"""Pages are rendered from templates that are package data; values are escaped and none is forgotten."""

import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from jinja2 import DictLoader, UndefinedError

from fp_lightning.evaluation.rows import number
from fp_lightning.media.pages import _environment

ROOT = Path(__file__).parents[2]
PACKAGES = ("media", "evaluation", "pairs")


def render(text: str, **context) -> str:
    env = _environment("fp_lightning.media").overlay(loader=DictLoader({"x.html": text}))
    return env.get_template("x.html").render(context)


def test_values_are_escaped():
    assert render("<p>{{ value }}</p>", value="<b>&") == "<p>&lt;b&gt;&amp;</p>"


def test_a_name_that_is_not_given_is_an_error():
    with pytest.raises(UndefinedError, match="value"):
        render("{{ value }}")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_template_compiles(package):
    env = _environment(f"fp_lightning.{package}")
    names = [path.name for path in (ROOT / "fp_lightning" / package / "templates").iterdir()]
    assert names
    for name in names:
        env.get_template(name)


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("suffix", [".css", ".js"])
def test_sheets_and_scripts_are_inlined_as_they_are(package, suffix):
    """Nothing in them is taken for Jinja's own syntax."""
    for path in (ROOT / "fp_lightning" / package / "templates").glob(f"*{suffix}"):
        assert _environment(f"fp_lightning.{package}").get_template(path.name).render() == path.read_text().rstrip("\n")


def test_templates_are_package_data():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    folders = sorted((ROOT / "fp_lightning").rglob("templates"))
    assert [folder.parent.name for folder in folders] == sorted(PACKAGES)
    for folder in folders:
        patterns = data[f"fp_lightning.{folder.parent.name}"]
        for path in folder.iterdir():
            assert any(fnmatch(f"templates/{path.name}", pattern) for pattern in patterns)


@pytest.mark.parametrize(
    ("value", "options", "shown"),
    [
        (3, {}, "3"),
        (0.91234, {}, "0.912"),
        (-1.5, {"decimals": 1, "unit": " dB"}, "−1.5 dB"),
        (2.25, {"decimals": 2, "sign": "+"}, "+2.25"),
        (float("nan"), {}, "–"),
        (None, {}, "–"),
        ("3", {}, "–"),
    ],
)
def test_numbers(value, options, shown):
    assert number(value, **options) == shown
