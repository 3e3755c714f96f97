"""The page as text: whole, escaped, its numbers those of the report, nothing from outside."""

import itertools
import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from selector.errors import SelectorError
from selector.pruning.report import Report
from selector.pruning.report_page.page import page_of
from selector.pruning.report_page.verdict import verdict
from tests.pruning.report_page.page_reader import PageReader

NASTY = "<script>alert('x')</script> \"quoted\" & {{ 7 * 7 }}"


@pytest.fixture(scope="module")
def page(demo_report: Report) -> PageReader:
    return PageReader(page_of(demo_report))


def test_the_page_needs_nothing_else(demo_report: Report) -> None:
    text = page_of(demo_report)
    assert not re.findall(r"(?:https?:)?//[\w.]", text)
    assert "<script" not in text
    assert "@import" not in text
    assert len(text.encode()) < 200_000
    # Even if something slipped through, the browser is told not to fetch it.
    assert "default-src 'none'" in text


def test_the_first_sentence_is_the_verdict(page: PageReader, demo_report: Report) -> None:
    (heading,) = page.all("h1")
    assert heading.text.replace("\xa0", " ") == verdict(demo_report)
    words = " ".join(page.all("body")[0].text.split())
    assert words.startswith(f"Skip to the report {verdict(demo_report)}")


def test_every_reference_leads_somewhere(page: PageReader) -> None:
    ids = page.ids()
    for element in page.elements:
        for name in ("aria-labelledby", "aria-describedby"):
            for target in element.attributes.get(name, "").split():
                assert target in ids, target
        link = element.attributes.get("href", "")
        if element.tag == "a":
            assert link.removeprefix("#") in ids, link


def test_the_page_can_be_heard(page: PageReader) -> None:
    (root,) = page.all("html")
    assert root.attributes["lang"] == "en"
    assert len(page.all("main")) == 1
    levels = [int(one.tag[1]) for one in page.all("h1", "h2", "h3")]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for table in page.all("table"):
        assert table.children[0].tag == "caption"
        assert len(table.children[0].text.split()) >= 3
    for cell in page.all("th"):
        assert cell.attributes.get("scope") in ("col", "row")
    for drawing in page.all("svg"):
        if drawing.attributes.get("aria-hidden") != "true":
            assert drawing.attributes["role"] == "img"
            assert [one.tag for one in drawing.children[:2]] == ["title", "desc"]


def test_rows_have_as_many_cells_as_their_table_has_columns(page: PageReader) -> None:
    for table in page.all("table"):
        rows = [one for one in page.all("tr") if table in one.parents]
        assert len({len(row.children) for row in rows}) == 1, table.children[0].text


def test_numbers_are_those_of_the_report(page: PageReader, demo_report: Report) -> None:
    report = demo_report
    rounds = page.table("Each round")
    assert [row[1] for row in rounds] == [f"{100 * s.macs_kept:.1f} %" for s in report.steps]
    assert [row[4] for row in rounds] == [f"{s.loss:.4f}" for s in report.steps]
    widths = page.table("Outputs of every convolution")
    assert [(row[0], int(row[2]), int(row[3])) for row in widths] == [
        (layer.layer, *layer.outputs) for layer in report.layers
    ]
    matrix = page.table("that each metric removed")
    for row, cells in zip(report.rows, matrix, strict=True):
        assert cells[0] == row.group
        assert sum(int(cell or 0) for cell in cells[1:]) == row.channels_before - row.channels_after
    assert report.repair is not None
    repaired = page.table("Variance explained")
    assert [row[0] for row in repaired] == [
        one.layer for one in report.repair.layers if one.done != "statistics"
    ]
    assert dict(page.table("keep all their channels")) == dict(report.refused)


def test_all_that_the_reader_must_know_is_there(page: PageReader, demo_report: Report) -> None:
    text = page.all("body")[0].text
    run = demo_report.run
    assert run is not None
    shown = [run.call, str(run.seed), run.machine, run.network, *(v for _, v in run.versions)]
    for words in (*shown, "load_pruned", "400 calibration images", "500 test images"):
        assert words in text, words


def nasty(value: object) -> object:
    """The same value with every text in it replaced by one that breaks careless pages."""
    if isinstance(value, str):
        return NASTY
    if isinstance(value, tuple):
        return tuple(map(nasty, value))
    if hasattr(value, "__dataclass_fields__"):
        return replace(value, **{f.name: nasty(getattr(value, f.name)) for f in fields(value)})  # type: ignore[type-var]
    return value


def test_everything_is_escaped(demo_report: Report) -> None:
    broken = nasty(demo_report)
    assert isinstance(broken, Report)
    text = page_of(broken)
    assert "<script" not in text
    page = PageReader(text)
    shown = page.all("body")[0].text
    for row in page.table("keep all their channels"):
        assert row == [NASTY, NASTY]
    assert shown.count(NASTY) > 20
    marks = [one for one in page.all("span") if "title" in one.attributes]
    assert all("alert" not in name for one in marks for name in one.attributes)


def test_what_was_not_measured_is_said(demo_report: Report) -> None:
    bare = replace(
        demo_report,
        latency=None,
        footprints=None,
        run=None,
        repair=None,
        unrepaired=None,
        expected=None,
        layers=(),
        calibrated=(None, None),
        steps=tuple(
            replace(step, accuracy=None, loss=None, predicted_nats=None, measured_nats=None)
            for step in demo_report.steps
        ),
        before=replace(demo_report.before, accuracy=None, loss=float("nan")),
        after=replace(demo_report.after, accuracy=None, loss=float("nan")),
    )
    page = PageReader(page_of(bare))
    found = {row[0]: row[1:] for row in page.table("The network before and after")}
    for name in ("weights file", "latency", "peak memory", "accuracy"):
        assert found[name] == ["not measured", "not measured", ""]
    text = page.all("body")[0].text
    assert "speed not measured" in text
    assert "nan" not in text.lower().split()
    assert "The network was not repaired" in text


def test_a_run_that_removed_nothing_has_a_page(demo_report: Report) -> None:
    kept = tuple(
        replace(row, channels_after=row.channels_before, trusted=()) for row in demo_report.rows
    )
    for rows in ((), kept):
        page = PageReader(page_of(replace(demo_report, rows=rows, steps=(), rounds=0)))
        assert page.all("h1")[0].text.startswith("Nothing was removed")


def test_the_report_is_written_whole_or_not_at_all(demo_report: Report, tmp_path: Path) -> None:
    demo_report.save_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page_of(demo_report)
    with pytest.raises(SelectorError, match="cannot be written"):
        demo_report.save_html(tmp_path / "missing" / "report.html")


def test_the_json_holds_what_the_page_shows(demo_report: Report) -> None:
    found = json.loads(demo_report.to_json())
    assert found["run"]["call"].startswith("selector.prune(model, batches, keep_macs=0.6")
    assert [tuple(row["outputs"]) for row in found["layers"]] == [
        row.outputs for row in demo_report.layers
    ]
    assert found["footprints"][1]["file_bytes"] < found["footprints"][0]["file_bytes"]
