"""The page of a paper in a real browser: what is seen at the width of a phone, hovered over, printed."""

import json
import re

import pytest
from browser import BROWSER, browser
from papers import CE, KD, PICK, fill, fill_teacher, paper_of

from kdflow.report import paper_page

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome here")

# Asked of the page by a script that is added to it: what no reader of HTML can know.
ASK = """<script>addEventListener("load", () => {
  const seen = element => getComputedStyle(element).display !== "none";
  const cell = document.querySelector("#table1 td:has(.spark)"), spark = cell.querySelector(".spark");
  const before = seen(spark);
  cell.querySelector("a").focus();
  const text = document.createElement("script");
  text.id = "answers"; text.type = "application/json";
  text.textContent = JSON.stringify({
    overflow: document.documentElement.scrollWidth - innerWidth, before, after: seen(spark),
    line: spark.querySelector("polyline").getBoundingClientRect().width,
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
    paper = paper_of(root)
    fill_teacher(paper)
    for name, top1 in ((CE, [80.0, 81.0, 82.5]), (KD, [90.0, 91.0]), (PICK, [95.0, 94.0, 96.0])):
        fill(paper, name, top1)
    fill(paper, f"{KD}-none", [70.0, 71.0, 72.0])
    paper_page.write(paper, root / "report.html")
    text = (root / "report.html").read_text()
    (root / "asked.html").write_text(text.replace("</body>", ASK))
    return root


@pytest.mark.parametrize("width", [500, 1200])
def test_it_fits_shows_curves_and_loads_nothing(folder, width):
    shown = browser(
        folder, f"--window-size={width},900", "--virtual-time-budget=3000", "--dump-dom", f"file://{folder}/asked.html"
    )
    found = re.search(r'<script id="answers"[^>]*>(.*?)</script>', shown)
    assert found is not None
    answers = json.loads(found[1])
    assert answers.pop("overflow") <= 0 and answers.pop("line") > 50
    assert answers.pop("colours") >= 3, "done, partial and missing"
    assert answers == {"before": False, "after": True, "loaded": 0, "images": [True, True], "targets": True}


def test_it_can_be_printed_and_looked_at(folder):
    browser(folder, f"--print-to-pdf={folder}/page.pdf", f"file://{folder}/report.html")
    assert (folder / "page.pdf").read_bytes().startswith(b"%PDF")
    browser(folder, f"--screenshot={folder}/page.png", "--window-size=390,1400", f"file://{folder}/report.html")
    assert (folder / "page.png").stat().st_size > 20_000
