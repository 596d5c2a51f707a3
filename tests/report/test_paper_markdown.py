"""The Markdown page of a paper, from the folder that its stages write to and from a copy of its records."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from papers import CE, KD, PICK, make_paper, write_cell, write_teacher
from paths import ROOT

from kdflow.core.errors import UserError
from kdflow.paper import CellStatuses, load_paper
from kdflow.paper.cells import copy_records
from kdflow.report import paper_markdown


@pytest.fixture
def paper(tmp_path):
    paper = make_paper(tmp_path)
    write_teacher(paper)
    write_cell(paper, KD, [91.0, 92.0, 93.0])
    write_cell(paper, CE, [90.0])
    return paper


def test_a_copy_of_the_records_gives_the_same_page(paper, tmp_path):
    assert copy_records(paper, tmp_path / "paper/records") == [CE, KD]
    assert not list((tmp_path / "paper/records").rglob("*.safetensors"))
    paper_markdown.write(paper, tmp_path / "here.md")
    shutil.rmtree(tmp_path / paper.data)
    copied = load_paper(Path("paper"), tmp_path, Path("paper/records"))
    assert [CellStatuses(copied)(name).status for name in (CE, KD, PICK)] == ["partial", "done", "missing"]
    paper_markdown.write(copied, tmp_path / "copy.md")
    page = (tmp_path / "copy.md").read_text()
    assert page.replace("copy/", "here/") == (tmp_path / "here.md").read_text()
    assert (tmp_path / "copy/figure1.svg").read_bytes() == (tmp_path / "here/figure1.svg").read_bytes()
    assert "92.00 (1.00)" in page and "![Error against epochs](copy/figure1.svg)" in page
    record = tmp_path / f"paper/records/cells/{KD}/cell.json"
    assert f"| `{hashlib.sha256(record.read_bytes()).hexdigest()[:12]}` |" in page
    assert "4 runs took" in page and PICK in page.partition("cells are missing: ")[2]


def test_the_page_of_the_evidence_is_made_from_its_records(tmp_path):
    paper = load_paper(Path("evidence"), ROOT, Path("evidence/records"))
    assert any(CellStatuses(paper)(name).seeds_done for name in paper.cells)
    paper_markdown.write(paper, tmp_path / "evidence.md")
    assert (tmp_path / "evidence.md").read_text() == (ROOT / "docs/evidence.md").read_text()


def test_an_edited_copy_is_refused(paper, tmp_path):
    copy_records(paper, tmp_path / "paper/records")
    file = tmp_path / f"paper/records/cells/{KD}/seed1.json"
    edited = json.loads(file.read_text())
    edited["final"]["top1"] = 99.0
    file.write_text(json.dumps(edited))
    with pytest.raises(UserError, match="changed after it was written"):
        paper_markdown.write(load_paper(Path("paper"), tmp_path, Path("paper/records")), tmp_path / "page.md")


def test_the_text_of_the_paper_comes_first(paper, tmp_path):
    (tmp_path / "paper/introduction.md").write_text("# Title\n\nText.\n")
    paper_markdown.write(paper, tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text().startswith("# Title\n\nText.\n\n")
