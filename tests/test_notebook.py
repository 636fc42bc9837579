"""The notebook runs from top to bottom on a machine that has nothing yet, and is stored without outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from pipelines.openpack.finetune import read_adapter

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "finetune.ipynb"
STEPS = 3


def shown(notebook: nbformat.NotebookNode) -> str:
    """Everything that the cells printed or displayed, as text."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(str(output.get("text") or output.get("data")) for output in outputs)


def test_it_is_stored_without_outputs():
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert any(cell.source.startswith("# VRAM MATH") for cell in cells)
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)


def test_it_runs_from_top_to_bottom_where_nothing_is_there_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("NOTEBOOK_STEPS", str(STEPS))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    text = shown(notebook)
    assert "72 tokens a frame, 576 for 8 frames" in text
    assert "| batch 2, 8 frames |" in text
    assert "| Qwen3-VL-2B-Instruct, 400 tokens |" in text
    assert "- LLaVA-NeXT-Video-7B-hf with `h100`: Set" in text
    assert "finetuned_model" in text
    adapter = tmp_path / "data" / "notebook" / "adapter"
    assert (adapter / "adapter_model.safetensors").is_file()
    assert len(read_adapter(adapter).losses) == STEPS
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["notebook"]  # the pipeline's folders stay free
