"""Execute notebooks in place, as they are shipped: with outputs, without paths of this machine and without noise.

    python notebooks/execute.py                                  # all notebooks, full settings
    python notebooks/execute.py notebooks/01_quickstart.ipynb    # selected notebooks
    FP_NOTEBOOK_REDUCED=1 python notebooks/execute.py --out DIR  # reduced settings, as in the tests

A notebook is written only if all its cells succeed.
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
    """Run all cells of a notebook in place.

    Args:
        notebook: an nbformat notebook.
        folder: working directory of the kernel.
        timeout: time limit per cell in seconds.
        kernel: a jupyter_client.KernelManager to use and keep alive; None starts a kernel for this notebook alone.

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
    """Remove stderr, widgets and paths of this machine from the outputs."""
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
    """Write a notebook atomically, with an indent of one space as ruff formats it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(nbformat.writes(notebook, indent=1, ensure_ascii=False).rstrip("\n") + "\n")
    os.replace(partial, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "notebooks", nargs="*", type=Path, help="notebooks to execute; all in this folder if none is named"
    )
    parser.add_argument("--out", type=Path, help="folder for the executed notebooks; without it they are replaced")
    parser.add_argument("--timeout", type=int, default=24 * 3600, help="time limit per cell in seconds")
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
