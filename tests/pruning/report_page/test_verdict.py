"""The first sentence says what the numbers say, and what must be known to believe it."""

from dataclasses import replace

import pytest

from selector.network.latency import Timed
from selector.planning.plan import Goal
from selector.pruning.report import Report
from selector.pruning.report_page.verdict import advice, verdict


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        (0.5, "Half the multiply-accumulates"),
        (0.4942, "Half the multiply-accumulates"),
        (0.47, "47 % of the multiply-accumulates left"),
        (0.334, "A third of the multiply-accumulates"),
        (0.251, "A quarter of the multiply-accumulates"),
        (0.8, "80 % of the multiply-accumulates left"),
    ],
)
def test_what_is_left_is_said_in_words(demo_report: Report, kept: float, words: str) -> None:
    said = verdict(replace(demo_report, macs=(1e6, kept * 1e6)))
    assert said.startswith(f"{words}, ")


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (0.5, "2.0 x faster on this CPU"),
        (0.588, "1.7 x faster on this CPU"),
        (1.02, "no faster that can be measured on this CPU"),
        (1.25, "1.2 x slower on this CPU"),
    ],
)
def test_the_speed_is_the_measured_one(demo_report: Report, ratio: float, words: str) -> None:
    timed = Timed(before=1.0, after=ratio, ratio=ratio, images=8)
    assert f", {words}, " in verdict(replace(demo_report, latency=timed))
    noisy = replace(timed, interval=(0.4, 1.3))
    said = "no faster that can be measured on this CPU"
    assert f", {said}, " in verdict(replace(demo_report, latency=noisy))


def test_accuracy_is_that_of_the_images_named(demo_report: Report) -> None:
    before, after = (
        replace(demo_report.before, accuracy=share, images=2000) for share in (0.926, 0.901)
    )
    report = replace(demo_report, before=before, after=after)
    assert "accuracy 92.6 → 90.1 % on 2,000 test images; " in verdict(report)
    report = replace(report, images_from="calibration images")
    assert "on 2,000 calibration images; " in verdict(report)
    assert any("flatter" in line for line in advice(report))
    assert not any("flatter" in line for line in advice(demo_report))


def test_fine_tuning_is_unknown_unless_there_was_some(demo_report: Report) -> None:
    assert verdict(demo_report).endswith("; after fine-tuning: unknown.")
    assert demo_report.run is not None
    tuned = replace(demo_report, run=replace(demo_report.run, fine_tuned=True))
    assert verdict(tuned).endswith("; fine-tuned after every round.")


def test_a_collapse_is_named(demo_report: Report) -> None:
    lost = replace(demo_report, after=replace(demo_report.after, accuracy=0.5))
    assert any("Fine-tune the network" in line for line in advice(lost))
    kept = replace(demo_report, after=demo_report.before)
    assert not any("Fine-tune" in line for line in advice(kept))


def test_the_error_of_an_accuracy_is_the_binomial_one(demo_report: Report) -> None:
    after = replace(demo_report.after, accuracy=0.9, images=2500)
    (line, *_) = advice(replace(demo_report, after=after))
    assert "2,500 images is known to about ± 1.2 points" in line  # 1.96 * sqrt(.9 * .1 / 2500)


@pytest.mark.parametrize(
    ("target", "asked", "got", "missed"),
    [
        ("keep_macs", 0.5, 0.51, False),
        ("keep_macs", 0.2, 0.33, True),
        ("keep_latency", 0.5, 0.7, True),
        ("ratio", 0.5, 0.4, False),
    ],
)
def test_a_target_that_was_not_met_is_said_first(
    demo_report: Report, target: str, asked: float, got: float, missed: bool
) -> None:
    said = verdict(replace(demo_report, goal=Goal(target, asked, got)))
    assert said.startswith("The target was not met: ") == missed


def test_the_report_says_its_verdict(demo_report: Report) -> None:
    assert demo_report.verdict == verdict(demo_report)
