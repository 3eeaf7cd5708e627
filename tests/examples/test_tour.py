"""The tour, run from its first cell to its last in a kernel of its own."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOUR = ROOT / "examples" / "tour.ipynb"
LARGEST_BYTES = 1_000_000

nbformat = pytest.importorskip("nbformat", reason="needs the extra 'tour'")
nbclient = pytest.importorskip("nbclient", reason="needs the extra 'tour'")
pytest.importorskip("ipykernel", reason="needs the extra 'tour'")


def pictures(cell) -> int:
    return sum("image/jpeg" in output.get("data", {}) for output in cell.get("outputs", []))


def printed(notebook) -> str:
    texts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            texts.append(output.get("text", "") + output.get("data", {}).get("text/plain", ""))
    return "\n".join(texts)


def test_committed_tour_was_run_whole_and_is_small():
    assert TOUR.stat().st_size < LARGEST_BYTES
    notebook = nbformat.read(TOUR, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(pictures(cell) for cell in cells) >= 4
    assert str(Path.home()) not in TOUR.read_text() and "site-packages" not in TOUR.read_text()


@pytest.mark.slow
def test_tour_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(TOUR, as_version=4)
    before = {number: pictures(cell) for number, cell in enumerate(notebook.cells)}
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(TOUR.parent)}}
    ).execute()
    assert {number: pictures(cell) for number, cell in enumerate(notebook.cells)} == before
    text = printed(notebook)
    assert "packed 12 of 12 clips" in text and "going on at step 8 of 24" in text
    assert "test: the same maps, read in other ways" in text
    assert not list(tmp_path.glob("whence-tour-*")), "the tour leaves files behind"
