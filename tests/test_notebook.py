"""Test the tutorial notebook, as stored and as executed."""

import base64
import io
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from cifar_resnet import CustomResNet

ROOT = Path(__file__).parents[1]
PATH = ROOT / "examples" / "tutorial.ipynb"
# cells that end with a figure, in order
FIGURES = [
    "classes",
    "channels",
    "field-figure",
    "augmented",
    "curve-figure",
    "confusion",
    "misclassified",
]


@pytest.fixture(scope="module")
def executed(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> nbformat.NotebookNode:
    notebook = nbformat.read(PATH, as_version=4)
    folder = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIFAR_RESNET_SMOKE", "1")
        patch.delenv("MPLBACKEND", raising=False)  # as in a user's notebook
        NotebookClient(
            notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}
        ).execute()
    assert {path.name for path in folder.iterdir()} == {"runs", "my-network.safetensors"}
    return notebook


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_of(notebook: nbformat.NotebookNode, cell_id: str) -> str:
    (cell,) = [cell for cell in notebook.cells if cell.id == cell_id]
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


# --- as stored -----------------------------------------------------------------------------------


def test_it_is_a_valid_notebook_without_outputs() -> None:
    notebook = nbformat.read(PATH, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in code_cells(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None
        assert cell.metadata == {}


def test_every_step_is_explained() -> None:
    cells = nbformat.read(PATH, as_version=4).cells
    assert [cell.source.splitlines()[0] for cell in cells if cell.source.startswith("## ")] == [
        "## 1. The data",
        "## 2. An image is a tensor",
        "## 3. The network and its receptive fields",
        "## 4. Augmentation",
        "## 5. Training",
        "## 6. Curves",
        "## 7. Test",
        "## 8. Comparison with a pretrained network",
        "## 9. Misclassified images",
        "## 10. Save your network",
        "## What to try next",
    ]
    for cell in cells:
        if re.match(r"## \d", cell.source):
            assert cell.source.count(". ") + cell.source.count(".\n") >= 2, cell.source


def test_its_code_is_formatted() -> None:
    for command in (["check"], ["format", "--check"]):
        result = subprocess.run(
            [sys.executable, "-m", "ruff", *command, str(PATH)],
            capture_output=True, text=True, cwd=ROOT,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout + result.stderr


# --- as executed ---------------------------------------------------------------------------------


def test_each_figure_is_shown_once(executed: nbformat.NotebookNode) -> None:
    shown = {}
    for cell in code_cells(executed):
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                image = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
                shown.setdefault(cell.id, []).append(image.size)
    assert list(shown) == FIGURES
    for cell_id, sizes in shown.items():
        assert len(sizes) == 1, cell_id
        assert min(sizes[0]) > 200, cell_id


def test_it_prints_no_warnings(executed: nbformat.NotebookNode) -> None:
    for cell in code_cells(executed):
        for output in cell.outputs:
            assert output.output_type in ("stream", "execute_result"), cell.id
            if output.output_type == "stream":
                # of a scan that takes long; the bar is cleared at its end
                is_progress = "images/s]" in output.text or not output.text.strip()
                assert output.name == "stdout" or is_progress, (cell.id, output.text)
                assert "Warning" not in output.text, (cell.id, output.text)


def test_the_training_prints_its_progress(executed: nbformat.NotebookNode) -> None:
    text = text_of(executed, "train")
    line = r"epoch +(\d+) of 2   loss +\d+\.\d{3}   training accuracy +\d+\.\d\d %   validation "
    lines = re.findall(line, text)
    assert lines == ["1", "2"]


def test_the_numbers_it_prints(executed: nbformat.NotebookNode) -> None:
    assert "train=45000, val=5000, test=10000" in text_of(executed, "load")
    parameters = sum(p.numel() for p in CustomResNet(width=16).parameters())
    assert f"{parameters:,} parameters" in text_of(executed, "fields")
    (quarter,) = re.findall(r"^quarter +(\d+\.\d+) %", text_of(executed, "compare"), re.MULTILINE)
    correct = round(float(quarter) * 100)  # of 10,000
    (errors,) = re.findall(r"of (\d+) errors in 10,000", text_of(executed, "confusion"))
    # an image with two nearly equal scores may be classified differently on another machine
    assert correct + int(errors) == pytest.approx(10_000, abs=5)
    assert "label: cat" in text_of(executed, "probabilities")  # of the first test image
