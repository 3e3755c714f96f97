"""The page in headless Chromium: no overflow, no complaint, readable in both themes, printable."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from selector.pruning.report import Report
from tests.browser import ABSENT, PROGRAM, Browser

pytestmark = pytest.mark.skipif(PROGRAM is None, reason=ABSENT)

WIDTHS = (360, 768, 1440)
OVERFLOWING = """
[...document.querySelectorAll('body *')].filter(one => {
  const box = one.getBoundingClientRect();
  const beyond = box.right > document.documentElement.clientWidth + 1;
  return beyond && !one.closest('.scroll, pre, .skip');
}).map(one => one.outerHTML.slice(0, 80))
"""
CONTRASTS = """
(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const over = (colour, under) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const one of [under, colour]) { canvas.fillStyle = one; canvas.fillRect(0, 0, 1, 1); }
    return `rgb(${[...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).join(',')})`;
  };
  const luminance = colour => colour.match(/\\d+/g).map(Number).map(x => x / 255)
    .map(x => x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4)
    .reduce((sum, x, i) => sum + x * [.2126, .7152, .0722][i], 0);
  const behind = one => {
    if (!one) return 'white';
    return over(getComputedStyle(one).backgroundColor, behind(one.parentElement));
  };
  const worst = [];
  for (const one of document.querySelectorAll('body *')) {
    const own = [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!own || one.closest('.skip, title, desc')) continue;
    const style = getComputedStyle(one), ground = behind(one.parentElement && one);
    const ink = over(one.closest('svg') ? style.fill : style.color, ground);
    const [low, high] = [luminance(ink), luminance(ground)].sort((a, b) => a - b);
    worst.push([(high + .05) / (low + .05), one.outerHTML.slice(0, 90)]);
  }
  return worst.sort((a, b) => a[0] - b[0]).slice(0, 3);
})()
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def page(demo_report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    demo_report.save_html(path)
    return path


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_and_nobody_complains(browser: Browser, page: Path, width: int, dark: bool) -> None:
    browser.show(page, width, dark=dark)
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value(OVERFLOWING) == []
    assert browser.complaints() == []


def test_overflow_would_be_seen(browser: Browser, tmp_path: Path) -> None:
    wide = tmp_path / "wide.html"
    viewport = "<meta name='viewport' content='width=device-width, initial-scale=1'>"
    wide.write_text(f"<!doctype html>{viewport}<p style='width: 900px'>x<img src='missing.png'>")
    browser.show(wide, 360)
    assert browser.value(OVERFLOWING)
    assert browser.complaints(), "the missing image"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_can_be_read(browser: Browser, page: Path, dark: bool) -> None:
    browser.show(page, 1000, dark=dark)
    ground = browser.value("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") != dark
    worst, element = browser.value(CONTRASTS)[0]
    assert worst >= 4.5, element


def test_the_keyboard_gets_everywhere(browser: Browser, page: Path) -> None:
    """The first stop skips to the report; terms say what they mean when they have the focus."""
    browser.show(page, 1000)
    browser.press("Tab")
    assert browser.value("document.activeElement.className") == "skip"
    assert browser.value("document.activeElement.getBoundingClientRect().left") >= 0
    meaning = "getComputedStyle(document.activeElement, '::after').content"
    for _ in range(30):
        browser.press("Tab")
        if browser.value("document.activeElement.className") == "term":
            break
    assert "Multiply-accumulates" in browser.value(meaning)
    # What says it lies within the window, at every width.
    for width in WIDTHS:
        browser.resize(width)
        assert browser.value("document.documentElement.scrollWidth") <= width


def test_a_screen_reader_hears_names(browser: Browser, page: Path) -> None:
    browser.show(page, 1000)
    nodes = browser.ask("Accessibility.getFullAXTree")["nodes"]
    named = [(x["role"]["value"], x.get("name", {}).get("value", "")) for x in nodes if "role" in x]
    for role in ("table", "image", "region", "heading", "link"):
        names = [name for found, name in named if found == role]
        assert names, role
        assert all(names), role
    said = [
        x for x in nodes if x.get("name", {}).get("value") == "parameters" and "description" in x
    ]
    assert any("training has set" in x["description"]["value"] for x in said)


def test_it_prints(browser: Browser, page: Path) -> None:
    browser.show(page, 1000, dark=True)
    assert browser.printed().startswith(b"%PDF")
    browser.media("print", dark=True)
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.value("getComputedStyle(document.querySelector('nav')).display") == "none"
    browser.resize(700)  # A4 between its margins.
    assert browser.value(OVERFLOWING) == []
