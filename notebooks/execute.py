"""Executes notebooks in place, as they are shipped: with outputs, without this machine's paths and without noise.

    python notebooks/execute.py                                  # all, in full
    python notebooks/execute.py notebooks/01_quickstart.ipynb    # some
    FP_NOTEBOOK_REDUCED=1 python notebooks/execute.py --out DIR  # in the settings of the tests, elsewhere

A notebook is written only when it ran to its end.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat

FOLDER = Path(__file__).resolve().parent
WIDGET = "application/vnd.jupyter.widget-view+json"


def execute(notebook: Any, folder: str | Path, timeout: int, kernel: Any = None) -> None:
    """Runs all cells of a notebook in place.

    Args:
        notebook: as nbformat reads it.
        folder: where the kernel starts.
        timeout: seconds that a cell may take.
        kernel: a jupyter_client.KernelManager, kept alive for the next notebook; None starts a kernel for this one.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    from nbclient import NotebookClient

    client = NotebookClient(
        notebook,
        km=kernel,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
    )
    client.execute()


def clean(notebook: Any, root: str | Path) -> None:
    """Takes out of the outputs what is of this machine or of this moment: stderr, widgets, paths."""
    places = sorted({str(root), tempfile.gettempdir(), sys.prefix, str(Path.home())}, key=len, reverse=True)

    def anonymous(text: str) -> str:
        for place in places:
            text = text.replace(f"{place}/", "").replace(place, ".")
        return text

    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        kept = []
        for output in cell.outputs:
            data = output.get("data", {})
            if output.get("name") == "stderr" or WIDGET in data:
                continue
            if "text" in output:
                output["text"] = anonymous(output["text"])
            if "image/png" in data:
                data.pop("text/plain", None)
            for kind in [kind for kind in data if kind.startswith("text/")]:
                data[kind] = anonymous(data[kind])
            kept.append(output)
        cell.outputs = kept
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}


def write(notebook: Any, path: Path) -> None:
    """Writes a notebook whole or not at all, with one space of indent, as ruff formats it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(nbformat.writes(notebook, indent=1, ensure_ascii=False).rstrip("\n") + "\n")
    os.replace(partial, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, help="all beside this file if none is named")
    parser.add_argument("--out", type=Path, help="folder for the results, in place of the notebooks themselves")
    parser.add_argument("--timeout", type=int, default=24 * 3600, help="seconds that a cell may take")
    options = parser.parse_args()
    for path in options.notebooks or sorted(FOLDER.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        execute(notebook, FOLDER.parent, options.timeout)
        clean(notebook, FOLDER.parent)
        target = (options.out or path.parent) / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        write(notebook, target)
        print(f"{path.name}: {target.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
