"""What MkDocs adds to these pages: a Python reference made from docstrings, and the repository's files they link to.

Nothing is listed by hand: each package has a page with all of its public modules, found in the tree.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PACKAGES = ("fp_lightning", "datamodules", "callbacks")
OUTWARD = re.compile(r"(?<=\]\()\.\./([\w./-]+)(?=\))")  # links to files beside docs/, such as ../recipes/tiny.yaml


def public_modules(root: Path) -> dict[str, list[str]]:
    """The modules of each package under `root`, in order: {"fp_lightning.model.svd": ["fp_lightning.model.svd.load"]}.

    The package itself is not among its modules; names that begin with an underscore are left out.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if parts[-1] == "__init__":
                if any(path.parent.glob("[!_]*.py")):
                    found.setdefault(".".join(parts[:-1]), [])
            elif not any(part.startswith("_") for part in parts):
                found[".".join(parts[:-1])].append(".".join(parts))
    return dict(sorted(found.items(), key=lambda item: (PACKAGES.index(item[0].split(".")[0]), item[0])))


def short_names(init: Path) -> dict[str, str]:
    """The public names of a package that loads them lazily, and where each is defined."""
    nodes = [node for node in ast.walk(ast.parse(init.read_text())) if isinstance(node, ast.ImportFrom)]
    names = {alias.name: f"{node.module}.{alias.name}" for node in nodes for alias in node.names}
    return {name: where for name, where in sorted(names.items()) if where.startswith(f"{init.parent.name}.")}


def package_page(package: str, modules: list[str]) -> str:
    """Markdown that mkdocstrings turns into the reference of one package."""
    head = f"# {package}\n\n::: {package}\n    options:\n      members: false\n      show_root_heading: false\n"
    return head + "".join(f"\n::: {module}\n" for module in modules)


def overview_page(root: Path, packages: dict[str, list[str]]) -> str:
    """Markdown: the short names, then a table of packages."""
    names = short_names(root / PACKAGES[0] / "__init__.py")
    lines = ["# Python reference", "", "Names to import from `fp_lightning`:", "", "| name | defined in |", "|---|---|"]
    lines += [f"| [`{name}`][{where}] | `{where.rpartition('.')[0]}` |" for name, where in names.items()]
    lines += ["", "Packages:", "", "| package | modules |", "|---|---|"]
    for package, modules in packages.items():
        listed = ", ".join(f"[`{module.rpartition('.')[2]}`][{module}]" for module in modules)
        lines.append(f"| [`{package}`]({package}.md) | {listed} |")
    return "\n".join(lines) + "\n"


def _root(config: MkDocsConfig) -> Path:
    return Path(config.config_file_path).resolve().parent


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the reference at the end of the navigation, and the packages on mkdocstrings' path."""
    root = _root(config)
    pages: list[Any] = ["reference/index.md"]
    pages += [{package: f"reference/{package}.md"} for package in public_modules(root)]
    config.nav = [*(config.nav or []), {"Python reference": pages}]
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(root)]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the reference, and the repository's files that pages link to."""
    root = _root(config)
    packages = public_modules(root)
    pages = {package: package_page(package, modules) for package, modules in packages.items()}
    linked = {name for page in files.documentation_pages() for name in OUTWARD.findall(page.content_string)}
    for name, content in {"index": overview_page(root, packages), **pages}.items():
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    for name in sorted(linked):
        if (root / name).is_file():
            files.append(File.generated(config, f"files/{name}", abs_src_path=str(root / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads links that leave docs/ to the copies of these files; MkDocs reports those that have none."""

    def copy(link: re.Match[str]) -> str:
        return f"files/{link[1]}" if files.get_file_from_path(f"files/{link[1]}") else link[0]

    return OUTWARD.sub(copy, markdown)
