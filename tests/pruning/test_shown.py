"""What notebooks show: short lines, HTML without markup of a user's own, tables, figures."""

import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from selector.errors import SelectorError
from selector.network.tracing import find_groups
from selector.planning.sensitivity import sensitivity
from selector.planning.target import Target
from selector.pruning.method_comparison import compare_methods, methods_for
from selector.pruning.prune import prune
from selector.pruning.result import PruneResult
from tests.networks import data, small

SHOWN = ("result", "plan", "report", "groups", "sensitivity", "comparison")


@pytest.fixture(scope="module")
def shown() -> dict[str, object]:
    model, batches = small("plain", 8, norm=True), data()
    result = prune(model, batches, criterion="l1", keep_macs=0.6, rounds=2)
    return {
        "result": result,
        "plan": result.plan,
        "report": result.report,
        "groups": find_groups(model, batches[0][0]),
        "sensitivity": sensitivity(model, batches, criterion="l1", ratios=[0.25, 0.5]),
        "comparison": compare_methods(
            model, batches, methods=["l1", "even"], rounds=1, keep_macs=0.7
        ),
    }


@pytest.mark.parametrize("name", SHOWN)
def test_reprs_are_one_short_line(name: str, shown: dict[str, object]) -> None:
    text = repr(shown[name])
    assert "\n" not in text
    assert 10 < len(text) < 250


@pytest.mark.parametrize("name", SHOWN)
def test_notebooks_get_well_formed_tables(name: str, shown: dict[str, object]) -> None:
    html = shown[name]._repr_html_()  # type: ignore[attr-defined]
    tables = ElementTree.fromstring(f"<div>{html}</div>").findall("table")
    assert tables
    for table in tables:
        widths = {len(row) for row in table.iter("tr")}
        assert len(widths) == 1


def test_names_of_layers_are_no_markup(shown: dict[str, object]) -> None:
    result = shown["result"]
    assert isinstance(result, PruneResult)
    choice = replace(result.plan.choices[0], group="<b>bold</b>")
    html = replace(result.plan, choices=(choice,), cuts=())._repr_html_()
    assert "<b>" not in html
    assert "&lt;b&gt;bold" in html


@pytest.mark.parametrize("name", ["plan", "report", "groups", "sensitivity", "comparison"])
def test_tables_for_pandas(name: str, shown: dict[str, object]) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = shown[name].to_pandas()  # type: ignore[attr-defined]
    assert isinstance(frame, pandas.DataFrame)
    column = {"comparison": "method"}.get(name, "group")
    assert len(frame) == len(frame[column]) > 1


def test_pandas_that_is_not_there_is_named(
    shown: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    result = shown["result"]
    assert isinstance(result, PruneResult)
    with pytest.raises(SelectorError, match="to_pandas needs pandas: pip install pandas"):
        result.plan.to_pandas()


def test_figures_draw_what_was_measured(shown: dict[str, object]) -> None:
    result = shown["result"]
    assert isinstance(result, PruneResult)
    curve, widths = result.report.plot().axes
    assert list(curve.lines[0].get_ydata()) == [step.loss for step in result.report.steps]
    drawn = [bar.get_width() for bar in widths.containers[1]]
    assert drawn == [row.channels_after for row in result.report.rows][::-1]
    heat = shown["sensitivity"].plot().axes[0].images[0]  # type: ignore[attr-defined]
    assert heat.get_array().shape == (len(shown["sensitivity"].groups), 2)  # type: ignore[attr-defined]
    bars = shown["comparison"].plot().axes[0].containers[0]  # type: ignore[attr-defined]
    assert len(bars) == 3


def test_comparisons_say_what_was_expected_of_the_selector_alone() -> None:
    model, batches = small("plain", 8, norm=True), data(64, 16)
    found = compare_methods(model, batches, methods=["l1", "selector"], keep_macs=0.6, rounds=2)
    _, plain, chosen = found.rows
    assert plain.expected_drop is None
    assert chosen.expected_drop is not None
    drop, least, most = chosen.expected_drop
    assert least <= drop <= most
    line = next(line for line in str(found).splitlines() if "selector" in line)
    assert f"{100 * drop:.0f} ({100 * least:.0f} to {100 * most:.0f})" in line


def test_a_ratio_compares_the_methods_that_leave_widths_alone() -> None:
    model, batches = small("plain", 8, norm=True), data(64, 16)
    assert "selector" in methods_for(Target.of({"keep_macs": 0.5}))
    assert "selector" not in methods_for(Target.of({"ratio": 0.3}))
    with pytest.raises(SelectorError, match="'verify' chooses widths, and a ratio leaves none"):
        compare_methods(model, batches, methods=["l1", "verify"], ratio=0.3)
