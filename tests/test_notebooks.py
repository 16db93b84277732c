"""Every notebook runs with reduced settings; shipped outputs are complete and name no path of a machine."""

import base64
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import make_editor

from fp_lightning import FramePainterPipeline

REMEDY = "notebooks need it: pip install -e '.[notebooks]'"
nbformat, *_ = (
    pytest.importorskip(name, reason=f"{name} is missing, {REMEDY}")
    for name in ("nbformat", "nbclient", "ipykernel", "matplotlib")
)

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SWEEPS = ("03_ablations", "05_data_efficiency")  # they share runs
OTHERS = [(path.stem,) for path in NOTEBOOKS if path.stem not in SWEEPS]
PICTURES = {"01_quickstart": 3, "02_signals": 6, "03_ablations": 2, "04_correspondence": 4, "05_data_efficiency": 1}
TEXT = {  # patterns that every run must print
    "01_quickstart": ["lead of the edit", "scene-0.sketch.png"],
    "03_ablations": [r"\d+ runs: ", "appears|reversed|not decided", "correspondence.all.error"],
    "04_correspondence": ["Least error on the finest grid"],
    "05_data_efficiency": ["better|worse|not decided"],
    "06_real_svd": ["49,574,080", "576 × 1024", r"9216 × 5 layers"],
}
MAX_KB = 800

spec = importlib.util.spec_from_file_location("execute", ROOT / "notebooks" / "execute.py")
execute = importlib.util.module_from_spec(spec)
spec.loader.exec_module(execute)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """One kernel for all notebooks, because a new one spends many seconds on imports."""
    folder = tmp_path_factory.mktemp("notebooks")
    FramePainterPipeline.from_editor(make_editor(control_factor=1.0), (64, 64)).save_pretrained(folder / "editor")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FP_NOTEBOOK_REDUCED", "1")
        patch.setenv("FP_NOTEBOOK_MODEL", str(folder / "editor"))
        patch.setenv("FP_NOTEBOOK_RUNS", str(folder / "runs"))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        from jupyter_client.manager import KernelManager

        manager = KernelManager(kernel_name="python3")
        yield manager, folder
        if manager.has_kernel:
            manager.shutdown_kernel(now=True)


def run(kernel, stem: str, preparation: str = ""):
    """Execute a notebook in a kernel without the variables of earlier ones."""
    manager, folder = kernel
    notebook = nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", as_version=4)
    first = f"%reset -f\n__spec__ = None  # multiprocessing needs it, %reset deletes it\n{preparation}"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(first))
    execute.execute(notebook, folder, 600, manager)
    notebook.cells.pop(0)
    return notebook


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def pictures(notebook) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def text(notebook) -> str:
    return "\n".join(
        [output.get("text", "") for output in outputs(notebook)]
        + [
            value
            for output in outputs(notebook)
            for kind, value in output.get("data", {}).items()
            if kind.startswith("text/")
        ]
    )


def check(notebook, stem: str) -> None:
    assert pictures(notebook) >= PICTURES.get(stem, 0)
    printed = text(notebook)
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    assert "warning" not in printed.lower()
    assert not [pattern for pattern in TEXT.get(stem, []) if not re.search(pattern, printed)]


# --- they run


@pytest.mark.parametrize("stems", [*OTHERS, SWEEPS], ids=" and ".join)
def test_it_runs(kernel, stems):
    for stem in stems:
        preparation = ""
        if stem in SWEEPS:
            preparation = f"import sys\nsys.path.append({str(Path(__file__).parent)!r})\n"
            preparation += "import commandline\ncommandline.fork_sweeps()\ndel sys, commandline"
        notebook = run(kernel, stem, preparation)
        check(notebook, stem)
        before = pictures(notebook)
        execute.clean(notebook, kernel[1])
        assert pictures(notebook) == before and str(kernel[1]) not in text(notebook)


# --- what is shipped


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def shipped(request):
    return request.param, nbformat.read(request.param, as_version=4)


def test_shipped_outputs_are_there_and_clean(shipped):
    path, notebook = shipped
    assert outputs(notebook), f"execute it: python notebooks/execute.py notebooks/{path.name}"
    check(notebook, path.stem)
    assert path.stat().st_size < MAX_KB * 1024


def test_shipped_notebooks_do_not_depend_on_a_machine(shipped):
    path, notebook = shipped
    content = path.read_text()
    for place in (str(ROOT), str(Path.home()), sys.prefix, tempfile.gettempdir(), "/home", "/Users", "site-packages"):
        assert f"{place}/" not in content
    assert not [output for output in outputs(notebook) if output.get("name") == "stderr"]
    assert "widgets" not in notebook.metadata


def test_every_notebook_states_what_it_shows_needs_and_takes(shipped):
    _, notebook = shipped
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    for part in ("**Shows**", "**Needs**", "**Takes**"):
        assert part in first.source


def test_clean_removes_what_depends_on_the_machine(tmp_path):
    cell = nbformat.v4.new_code_cell("…")
    dot = base64.b64encode((ROOT / "docs" / "edits.png").read_bytes()).decode()
    cell.outputs = [
        nbformat.v4.new_output("stream", name="stderr", text="a bar"),
        nbformat.v4.new_output("stream", name="stdout", text=f"in {tmp_path}/runs"),
        nbformat.v4.new_output("display_data", {execute.WIDGET: {}, "text/plain": "…"}),
        nbformat.v4.new_output("display_data", {"image/png": dot, "text/plain": "<Figure>"}),
    ]
    notebook = nbformat.v4.new_notebook(cells=[cell])
    execute.clean(notebook, tmp_path)
    assert [output.output_type for output in cell.outputs] == ["stream", "display_data"]
    assert cell.outputs[0]["text"] == "in runs"
    assert cell.outputs[1]["data"] == {"image/png": dot}


def test_execute_writes_a_notebook_only_if_all_cells_succeed(tmp_path):
    good, bad = (
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]) for code in ("print(6 * 7)", "1 / 0")
    )
    for name, notebook in (("good", good), ("bad", bad)):
        (tmp_path / f"{name}.ipynb").write_text(nbformat.writes(notebook))
    script = [sys.executable, str(ROOT / "notebooks" / "execute.py")]
    subprocess.run([*script, str(tmp_path / "good.ipynb")], check=True, capture_output=True)
    assert json.loads((tmp_path / "good.ipynb").read_text())["cells"][0]["outputs"][0]["text"] == ["42\n"]
    before = (tmp_path / "bad.ipynb").read_bytes()
    assert subprocess.run([*script, str(tmp_path / "bad.ipynb")], capture_output=True).returncode
    assert (tmp_path / "bad.ipynb").read_bytes() == before
