"""The page in a browser: nothing complains, tables sort, pictures load, nothing runs off it."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gratis.report import write_report
from gratis.run import Run
from tests.report_parts import make_full_run
from tests.reports import RESULTS, evaluation, make_run
from tests.test_report_phases import phased

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="needs a Chromium to open the page in: apt-get install chromium"
)

QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-logging=stderr", "--hide-scrollbars", "--virtual-time-budget=3000", "--dump-dom"),
)

LOOK = """
const seen = {};
const images = Array.from(document.images);
seen.images = images.length;
seen.loaded = images.filter((image) => image.complete && image.naturalWidth > 0).length;
seen.width = window.innerWidth;
seen.overflow = document.documentElement.scrollWidth - window.innerWidth;
const table = document.querySelector(".results table");
const names = () => Array.from(table.tBodies[0].rows).slice(1).map(
  (row) => row.querySelector(".name").textContent);
const press = (column) => {
  const head = table.tHead.rows[0].cells[column];
  const button = head.querySelector("button");
  button.focus();
  seen.focused = document.activeElement === button;
  button.click();
  return [head.getAttribute("aria-sort"), ...names()];
};
seen.start = ["", ...names()];
seen.robust = press(1);
seen.again = press(1);
seen.method = press(0);
seen.heading = table.tBodies[0].rows[0].className;
seen.sorted = Array.from(table.tHead.rows[0].cells).map((head) => head.getAttribute("aria-sort"));
seen.buttons = document.querySelectorAll("table.sortable thead button").length;
seen.unlabelled = Array.from(document.querySelectorAll("button")).filter(
  (button) => !button.textContent.trim()).length;
seen.background = getComputedStyle(document.body).backgroundColor;
const out = document.createElement("pre");
out.id = "seen";
out.textContent = JSON.stringify(seen);
document.body.append(out);
"""


def opened(page: Path, tmp_path: Path, *flags: str, look: bool = True) -> tuple[Any, list[str]]:
    """What LOOK saw on the page, and what the browser's console said."""
    text = page.read_text("utf-8")
    if look:  # let in by the page's own policy, which else lets one script run
        digest = base64.b64encode(hashlib.sha256(LOOK.encode()).digest()).decode()
        text = text.replace("script-src ", f"script-src 'sha256-{digest}' ")
        text = text.replace("</body>", f"<script>{LOOK}</script></body>")
    shown = tmp_path / "shown.html"
    shown.write_text(text, "utf-8")
    assert BROWSER is not None
    done = subprocess.run(
        [BROWSER, *QUIET, *flags, f"--user-data-dir={tmp_path / 'profile'}", shown.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    said = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    return (json.loads(html.unescape(found[1])) if found else None), said


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    budgets = [RESULTS["budget"] | {"metered_passes": passes} for passes in (160.0, 9.0, 80.0)]
    runs: list[Run] = [make_full_run(folder / "b", method="free-8", budget=budgets[0])]
    for name, budget, robust in (("a", budgets[1], 20), ("c", budgets[2], 400)):
        measured = [evaluation(robust)]
        runs.append(make_run(folder / name, method=name, budget=budget, evaluations=measured))
    write_report(runs, folder / "report.html")
    return folder / "report.html"


def test_the_page_as_it_is_says_nothing_to_the_console(page: Path, tmp_path: Path) -> None:
    assert opened(page, tmp_path, look=False) == (None, [])


def test_a_script_of_another_hand_is_refused_aloud(page: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.html"
    text = page.read_text("utf-8")
    changed.write_text(text.replace("</body>", "<script>document.title = 1</script></body>"))
    _, said = opened(changed, tmp_path, look=False)
    assert len(said) == 1
    assert "Content Security Policy" in said[0]


@pytest.mark.parametrize("width", [1280, 400])
def test_tables_sort_and_pictures_load(page: Path, tmp_path: Path, width: int) -> None:
    seen, said = opened(page, tmp_path, f"--window-size={width},900")
    assert said == []
    assert seen["images"] == seen["loaded"] == 9 + 2 * 8 + 2 + 12
    assert seen["start"] == ["", "free-8", "a", "c"]
    assert seen["robust"] == ["descending", "c", "free-8", "a"]
    assert seen["again"] == ["ascending", "a", "free-8", "c"]
    assert seen["method"] == ["ascending", "a", "c", "free-8"]
    assert seen["sorted"] == ["ascending", *["none"] * 5]
    assert seen["heading"] == "protocol", "what was measured stays above the rows"
    assert seen["focused"]
    assert seen["unlabelled"] == 0
    assert seen["buttons"] > 6 + 7, "the tables below sort too"
    assert seen["width"] <= max(width, 500), "some browsers do not go below 500"
    assert seen["overflow"] <= 0


def test_the_phases_of_a_run_do_not_run_off_a_phone(tmp_path: Path) -> None:
    write_report([phased(tmp_path / "run")], tmp_path / "report.html")
    seen, said = opened(tmp_path / "report.html", tmp_path, "--window-size=400,900")
    assert said == []
    assert seen["overflow"] <= 0


def test_dark_is_dark(page: Path, tmp_path: Path) -> None:
    light, _ = opened(page, tmp_path)
    dark, said = opened(page, tmp_path, "--blink-settings=preferredColorScheme=0")
    assert said == []
    assert light["background"] == "rgb(247, 246, 243)"
    assert dark["background"] == "rgb(18, 20, 24)"
