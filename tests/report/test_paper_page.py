"""The page of a paper in a real browser: on a narrow window, with the focus on a cell, and printed."""

import json
import re

import pytest
from browser import BROWSER, browser
from papers import CE, KD, PICK, make_paper, write_cell, write_teacher

from kdflow.report import paper_page

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome")

# A script that is added to the page measures its layout and appends the results.
MEASURE = """<script>addEventListener("load", () => {
  const visible = element => getComputedStyle(element).display !== "none";
  const cell = document.querySelector("#table1 td:has(.curve)"), curve = cell.querySelector(".curve");
  const before = visible(curve);
  cell.querySelector("a").focus();
  const text = document.createElement("script");
  text.id = "results"; text.type = "application/json";
  text.textContent = JSON.stringify({
    overflow: document.documentElement.scrollWidth - innerWidth, before, after: visible(curve),
    line: curve.querySelector("polyline").getBoundingClientRect().width,
    loaded: performance.getEntriesByType("resource").filter(entry => !entry.name.startsWith("data:")).length,
    images: [...document.images].map(image => image.naturalWidth > 100),
    colours: new Set([...document.querySelectorAll("#table1 td")].map(td => getComputedStyle(td).backgroundColor)).size,
    targets: [...document.querySelectorAll('a[href^="#"]')].every(a => document.getElementById(a.hash.slice(1))),
  });
  document.body.append(text);
});</script></body>"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("paper")
    paper = make_paper(root)
    write_teacher(paper)
    for name, top1 in ((CE, [80.0, 81.0, 82.5]), (KD, [90.0, 91.0]), (PICK, [95.0, 94.0, 96.0])):
        write_cell(paper, name, top1)
    write_cell(paper, f"{KD}-none", [70.0, 71.0, 72.0])
    paper_page.write(paper, root / "report.html")
    text = (root / "report.html").read_text()
    (root / "measured.html").write_text(text.replace("</body>", MEASURE))
    return root


@pytest.mark.parametrize("width", [500, 1200])
def test_the_page_fits_shows_curves_and_loads_nothing(folder, width):
    dom = browser(
        folder,
        f"--window-size={width},900",
        "--virtual-time-budget=3000",
        "--dump-dom",
        f"file://{folder}/measured.html",
    )
    match = re.search(r'<script id="results"[^>]*>(.*?)</script>', dom)
    assert match is not None
    results = json.loads(match[1])
    assert results.pop("overflow") <= 0 and results.pop("line") > 50
    assert results.pop("colours") >= 3, "done, partial and missing"
    assert results == {"before": False, "after": True, "loaded": 0, "images": [True, True], "targets": True}


def test_the_page_can_be_printed_and_captured(folder):
    browser(folder, f"--print-to-pdf={folder}/page.pdf", f"file://{folder}/report.html")
    assert (folder / "page.pdf").read_bytes().startswith(b"%PDF")
    browser(folder, f"--screenshot={folder}/page.png", "--window-size=390,1400", f"file://{folder}/report.html")
    assert (folder / "page.png").stat().st_size > 20_000
