"""The report's first sentence, and what a reader must know before believing it."""

import math

from selector.pruning.report_values import ReportValues

SHARES = {
    0.75: "Three quarters of",
    2 / 3: "Two thirds of",
    0.5: "Half",
    1 / 3: "A third of",
    0.25: "A quarter of",
}
NEAR = 0.012
"""A share this near to a fraction is called by its name."""
SAME_SPEED = 0.05
ALARM = 0.9
"""Where less than this share of the accuracy is left, the report advises to fine-tune."""
MISSED = 0.03
"""A share that is left beyond the one asked for by more than this is a target not met."""
TEST_IMAGES = "test images"


def verdict(report: ReportValues) -> str:
    """What came of the pruning, in one sentence."""
    if not any(row.channels_after < row.channels_before for row in report.rows):
        return "Nothing was removed: the network is as it was."
    parts = ", ".join([_size(report), _speed(report), _quality(report)])
    missed = "The target was not met: " if _missed(report) else ""
    return f"{missed}{parts}; {_training(report)}."


def _missed(report: ReportValues) -> bool:
    """Whether more is left than was asked for, beyond what widths and timings explain."""
    goal = report.goal
    return goal is not None and goal.target.startswith("keep") and goal.got > goal.asked + MISSED


def _size(report: ReportValues) -> str:
    kept = report.macs[1] / report.macs[0]
    named = [words for share, words in SHARES.items() if abs(kept - share) <= NEAR]
    if named:
        return f"{named[0]} the multiply-accumulates"
    return f"{100 * kept:.0f} % of the multiply-accumulates left"


def _speed(report: ReportValues) -> str:
    if report.latency is None:
        return "speed not measured"
    gain = 1 / report.latency.ratio
    device = "this CPU" if report.run is None or report.run.device == "cpu" else "this GPU"
    low, high = report.latency.interval or (report.latency.ratio,) * 2
    if abs(gain - 1) < SAME_SPEED or low < 1 < high:
        return f"no faster that can be measured on {device}"
    return (
        f"{gain:.1f} x faster on {device}" if gain > 1 else f"{1 / gain:.1f} x slower on {device}"
    )


def _quality(report: ReportValues) -> str:
    before, after = report.before, report.after
    images = f"{after.images:,} {report.images_from}"
    if before.accuracy is not None and after.accuracy is not None:
        return f"accuracy {100 * before.accuracy:.1f} → {100 * after.accuracy:.1f} % on {images}"
    if math.isnan(after.loss):
        return "accuracy not measured, as the images have no labels"
    return f"loss {before.loss:.3f} → {after.loss:.3f} on {images}"


def _training(report: ReportValues) -> str:
    if report.run is not None and report.run.fine_tuned:
        return "fine-tuned after every round"
    distilled = "distilled without labels; " if report.distillation else ""
    return f"{distilled}after fine-tuning: unknown"


def advice(report: ReportValues) -> list[str]:
    """What a reader must know before believing the verdict, a sentence or two each."""
    before, after = report.before.accuracy, report.after.accuracy
    said = []
    if after is not None and before is not None:
        error = 196 * math.sqrt(after * (1 - after) / report.after.images)
        said.append(
            f"An accuracy on {report.after.images:,} images is known to about ± {error:.1f} points "
            "(95 %)."
        )
        if after < ALARM * before:
            said.append(
                f"{100 * (before - after):.1f} points of accuracy are gone. Fine-tune the network "
                "before you use it, or keep more of it."
            )
    if report.images_from != TEST_IMAGES and not math.isnan(report.after.loss):
        said.append(
            "These are the images that the network was pruned with, so the figures flatter. Give "
            "test images (test_batches, --test-data) for a fair one."
        )
    return said


def forecast(report: ReportValues) -> str | None:
    """What the selector expected before the first cut; nothing where it was not asked."""
    expected = report.expected
    if expected is None:
        return None
    low, high = (expected.loss + change for change in expected.loss_change_interval)
    after = expected.loss + expected.loss_change_nats
    said = [f"loss {expected.loss:.3f} → {after:.3f} nats (90 % interval: {low:.3f} to {high:.3f})"]
    known = expected.accuracy, expected.accuracy_after
    if known[0] is not None and known[1] is not None and expected.accuracy_interval is not None:
        low, high = expected.accuracy_interval
        said.insert(
            0,
            f"accuracy {100 * known[0]:.1f} → {100 * known[1]:.1f} % (90 % interval: "
            f"{100 * low:.1f} to {100 * high:.1f} %)",
        )
    return (
        f"Before the first cut, the selector expected {' and '.join(said)} on the calibration "
        "images."
    )
