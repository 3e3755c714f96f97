"""Whole prunings judged: factors by hand, coverage of made runs, the worth of widths."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selector.cli.demo import calibration, network
from selector.errors import SelectorError
from selector.learning.composing import LEAST, LEAST_SUM, MOST, Composing
from selector.network.tracing import find_groups
from selector.pruning.prune import prune
from training.benchmarks.whole import page
from training.benchmarks.whole.lamp import lamp, lamp_shares, lowest_first
from training.benchmarks.whole.report import judged, learnt_from, quoted, widths
from training.benchmarks.whole.runs import (
    EVEN,
    FACTORS,
    LAMP,
    MEASURED,
    SELECTOR,
    WIDTHS,
    WholeRun,
    cases,
    kept_by,
)
from training.reporting.result_file import add_to_summary, read_result, write_result
from training.zoo.shared_third_party import third_party_folder


def made(
    network: str, family: str, factor: float, way: str = SELECTOR, keep: float = 0.5
) -> WholeRun:
    """A run whose accuracy falls by exp(-sum / 4) and lost `factor` times the predicted sum."""
    kept = tuple(float(np.exp(-f / 4)) for f in FACTORS)
    left = 0.8 * float(np.exp(-factor / 4))
    return WholeRun(network, family, way, keep, "s", 0.8, left, keep, 1.0, 1.0, kept)


@pytest.mark.parametrize("factor", [0.1, 1.0, 3.0])
def test_the_factor_explains_what_was_left(factor: float) -> None:
    assert made("a", "f", factor).factor == pytest.approx(factor, rel=0.02)


def test_composing_is_the_quantiles_of_bounded_factors() -> None:
    found = Composing.learnt([1.0, 2.0, 4.0])
    assert found.middle == pytest.approx(2.0)
    assert 1.0 < found.low < 2.0 < found.high < 4.0
    wide = Composing.learnt([0.0, 1e9])
    assert LEAST <= wide.low <= wide.high <= MOST
    with pytest.raises(SelectorError, match="three ascending factors"):
        Composing(2.0, 1.0, 3.0)


def test_intervals_of_like_families_hold_and_of_another_kind_do_not() -> None:
    chance = np.random.default_rng(0)
    alike = [made(f"n{i}", f"f{i % 5}", float(np.exp(chance.normal(0, 0.3)))) for i in range(60)]
    held = judged(alike)
    assert held["whole_prunes"] == 60
    assert 0.8 <= held["forecast_coverage"] <= 1.0
    strange = judged([*alike, *(made(f"s{i}", "strange", 12.0) for i in range(30))])
    assert strange["forecast_coverage"] < held["forecast_coverage"] - 0.2


def test_networks_kept_for_tests_are_judged_apart_and_teach_nothing() -> None:
    chance = np.random.default_rng(0)
    alike = [made(f"n{i}", f"f{i % 5}", float(np.exp(chance.normal(0, 0.3)))) for i in range(60)]
    others = [replace(made(f"t{i}", f"f{i % 5}", 12.0), role="test") for i in range(8)]
    found = judged([*alike, *others])
    assert {name: value for name, value in found.items() if "_test" not in name} == judged(alike)
    assert (found["whole_prunes_test"], found["forecast_coverage_test"]) == (8, 0)
    assert (found["forecast_inside_50_test"], found["forecast_inside_50_of_test"]) == (0, 8)
    assert learnt_from(others) == []


def test_widths_are_compared_network_by_network() -> None:
    runs = [
        made(f"n{i}", "f", factor, way)
        for i in range(4)
        for way, factor in ((WIDTHS, 0.5), (EVEN, 1.0 + i))
    ]
    found = widths(runs)
    by_hand = [100 * (runs[2 * i].left - runs[2 * i + 1].left) for i in range(4)]
    assert found["widths_over_even_50"] == pytest.approx(np.mean(by_hand), abs=0.01)
    assert found["widths_over_even_50_worst"] == pytest.approx(min(by_hand), abs=0.01)
    assert found["widths_over_even_50_low"] < found["widths_over_even_50"]
    assert "widths_over_even_30" not in found


def test_a_sum_of_next_to_nothing_counts_as_a_little() -> None:
    composing = Composing(0.1, 0.5, 2.0)
    assert composing.of(1.0) == (0.1, 0.5, 2.0)
    assert (
        composing.of(-0.3)
        == composing.of(0.0)
        == pytest.approx([f * LEAST_SUM for f in (0.1, 0.5, 2)])
    )
    tiny = replace(made("a", "f", 1.0), predicted=LEAST_SUM / 2)
    assert learnt_from([tiny, made("b", "f", 1.0)]) == [made("b", "f", 1.0)]


def test_the_evaluation_quotes_whole_prunings(tmp_path: Path) -> None:
    assert quoted(tmp_path) == {}
    write_result("evaluation", {"networks": 3.0}, [], tmp_path)
    summary = {"whole_prunes": 52.0, "forecast_coverage": 0.9, "widths_over_even_50": 2.0}
    write_result("whole", summary, [], tmp_path)
    add_to_summary("evaluation", quoted(tmp_path), tmp_path)
    found = read_result("evaluation", "evaluate", tmp_path)["summary"]
    assert found == {"networks": 3.0, "forecast_coverage": 0.9, "widths_over_even_50": 2.0}
    add_to_summary("absent", summary, tmp_path)
    assert not (tmp_path / "absent.json").exists()


def test_the_document_compares_networks_with_all_kinds_of_widths(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text("above\n<!-- widths: begin -->\nold\n<!-- widths: end -->\nbelow\n")
    runs = [
        replace(made(name, "f", 1.0, way=way, keep=keep), left=left, seconds=seconds)
        for name, keep in (("a", 0.5), ("b", 0.5), ("c", 0.5), ("large", 0.8))
        for way, left, seconds in (
            (EVEN, 0.5, 1),
            (LAMP, 0.55, 1),
            (WIDTHS, 0.6, 2),
            (MEASURED, 0.7, 5),
        )
    ]
    alone = replace(made("d", "f", 1.0, way=MEASURED), left=0.1)
    summary = widths([*runs, alone])
    assert summary["measured_over_widths_50"] == 10
    assert summary["measured_over_even_50_networks"] == 3
    write_result("whole", summary, [asdict(run) for run in [*runs, alone]], tmp_path)
    page.update_page(document, tmp_path)
    text = document.read_text()
    assert "| 50% | 3 | 50.0 | 55.0 | 60.0 | 70.0 | 2.5 x |" in text
    assert "| 80%, ImageNet | 1 | 50.0 | 55.0 | 60.0 | 70.0 | 2.5 x |" in text
    assert "| large | learn | 80.0 | 50.0 | 55.0 | 60.0 | 70.0 |" in text
    assert "Measured widths over predicted ones, at 50% of the MACs: +10.0 points" in text
    assert text.startswith("above")
    assert text.endswith("below\n")
    assert "old" not in text


def test_networks_for_imagenet_are_pruned_less_and_compare_widths_alone() -> None:
    if third_party_folder() is None:
        pytest.skip("the shared networks are not there")
    known = {case.name: case for case in cases()}
    large = kept_by(known["mit_proxyless_03_imagenet"])
    assert set(large) == {WIDTHS, MEASURED, LAMP, EVEN}
    assert set(large.values()) == {(0.8,)}
    assert list(known).index("mit_proxyless_03_imagenet") > list(known).index(
        "abdelhakk_smallresnet_fashion"
    )
    assert kept_by(known["abdelhakk_smallresnet_fashion"])[MEASURED] == (0.7, 0.5, 0.3)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), channels=st.integers(1, 12), tied=st.booleans())
def test_lamp_by_its_slow_twin(seed: int, channels: int, tied: bool) -> None:
    norms = np.random.default_rng(seed).uniform(0, 2, channels)
    norms = np.round(norms) if tied else norms
    found = lamp(norms)
    for norm, score in zip(norms.tolist(), found.tolist(), strict=True):
        above = sum(other**2 for other in norms.tolist() if other > norm)
        same = sum(other == norm for other in norms.tolist())
        # Of equal channels, one after the other.
        expected = [norm**2 / max(above + k * norm**2, 1e-300) for k in range(1, same + 1)]
        assert min(abs(score - one) for one in expected) < 1e-9
    assert found.argmax() == norms.argmax() or tied
    assert found.max() == pytest.approx(1.0) or not norms.any()


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.8])
def test_lamp_takes_the_lowest_of_all_until_the_target_is_met(keep: float) -> None:
    model, images = network(), list(calibration())
    groups = find_groups(model, images[0][0])
    scores = {
        name: np.random.default_rng(number).uniform(size=group.channels)
        for number, (name, group) in enumerate(groups.prunable.items())
    }
    counts = lowest_first(groups, scores, keep)

    def share(numbers: Mapping[str, int]) -> float:
        removed = {groups.prunable[name]: count for name, count in numbers.items()}
        return groups.costs.total("macs", removed) / groups.costs.total("macs")

    assert share(counts) <= keep
    gone = {name: np.sort(own)[: counts[name]] for name, own in scores.items()}
    last = max(gone, key=lambda name: gone[name].max(initial=-1))
    assert share({**counts, last: counts[last] - 1}) > keep
    for name, own in scores.items():
        if counts[name] < int(0.9 * len(own)):  # As many as may go.
            assert np.sort(own)[counts[name]] >= gone[last].max()
    shares = lamp_shares(model, images, keep)
    assert share({n: round(s * groups.prunable[n].channels) for n, s in shares.items()}) <= keep
    result = prune(model, images, criterion="l1", ratios=shares, rounds=1)
    assert result.report.macs[1] / result.report.macs[0] <= keep
