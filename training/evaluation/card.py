"""What the model card says of the shipped selector, in sentences made from result files."""

from collections.abc import Mapping
from pathlib import Path

from training.reporting.marked_part import put
from training.reporting.result_file import RESULTS, read_result, result_if_there

Summary = Mapping[str, float]


def update_card(card: Path, results: Path = RESULTS) -> None:
    """Write the figures of the evaluation and of whole prunings into the model card.

    Args:
        card: The document; it has marks named `figures`.
        results: Folder of `evaluation.json` and `whole.json`.

    Raises:
        SelectorError: No evaluation, or no marks.
    """
    lines = held_out(read_result("evaluation", "evaluate", results)["summary"])
    if (whole := result_if_there("whole", results)) is not None:
        lines += whole_prunings(whole["summary"])
    put(card, "figures", "\n".join(f"- {line}" for line in lines))


def held_out(found: Summary) -> list[str]:
    """Sentences on decisions of families that the selector had not seen."""

    def share(name: str) -> str:
        return f"{found[name]:.0%}"

    def between(name: str) -> str:
        return f"{share(name)} ({share(name + '_low')} to {share(name + '_high')})"

    def ahead(name: str) -> str:
        low, high = found[f"{name}_low"], found[f"{name}_high"]
        return f"{found[name]:+.0f} points ({low:+.0f} to {high:+.0f})"

    lines = [
        f"{found['networks']:.0f} networks of {found['families']:.0f} families in "
        f"{found['recordings']:.0f} recordings, {found['decisions']:,.0f} decisions; mean of "
        f"{found['seeds']:.0f} seeds; networks weigh alike; 95 % intervals over networks.",
        "Gap closed between the single best arm and the full oracle, without oracle calls: "
        f"{between('nats_closed')} in nats, {between('capped_closed')} in normalised regret capped "
        "at 3.",
        "Ahead of the best unlearnt rule in hindsight by "
        f"{ahead('nats_over_best_rule')} of that gap in nats, {ahead('capped_over_best_rule')} in "
        "capped regret.",
        f"Of what an oracle without noise would gain over the single best: "
        f"{share('noise_free_share')} in nats.",
        f"Worse than the single best on {share('worse_than_sbs_share')} of the networks in nats, "
        f"on {share('worse_than_sbs_share_capped')} in capped regret.",
        "A shortlist of two with the oracle is ahead of a fixed portfolio of two by "
        f"{found['shortlist2_over_fixed']:+.0f} points of the capped gap, of three by "
        f"{found['shortlist3_over_fixed']:+.0f}.",
    ]
    for split, words in (
        ("dataset", "With data sets left out"),
        ("both", "With families and data sets left out"),
        ("third_party", "Learnt from our networks alone, judged on others'"),
    ):
        if f"{split}_nats_closed" in found:
            lines.append(
                f"{words}: {share(f'{split}_nats_closed')} in nats, "
                f"{share(f'{split}_capped_closed')} capped."
            )
    lines.append(
        f"The 90 % intervals in nats hold {share('interval_coverage')} of the measured changes."
    )
    return lines


def whole_prunings(found: Summary) -> list[str]:
    """Sentences on whole prunings by selectors that had not seen the family."""
    lines = []
    if "forecast_coverage" in found:
        lines.append(
            f"Of {found['whole_prunes']:.0f} whole prunings to 90, 70, 50 and 30 % of the MACs, "
            "the forecast's 90 % interval of the accuracy left holds "
            f"{found['forecast_coverage']:.0%}; its median width at half the MACs is "
            f"{found['forecast_width_points']:.0f} points."
        )
    if "forecast_coverage_test" in found:
        lines.append(
            f"Of {found['whole_prunes_test']:.0f} of networks kept for tests it holds "
            f"{found['forecast_coverage_test']:.0%}; width "
            f"{found['forecast_width_points_test']:.0f} points."
        )
    for keep in (70, 50, 30):
        for end, words in (("", ""), ("_test", " kept for tests")):
            name = f"widths_over_even_{keep}{end}"
            if name in found:
                lines.append(
                    f"At {keep} % of the MACs, with one arm choosing channels everywhere, the "
                    f"selector's widths are {found[name]:+.1f} points over even ones (from "
                    f"{found[f'{name}_low']:+.1f}, {found[f'{name}_networks']:.0f} networks"
                    f"{words}; worst {found[f'{name}_worst']:+.1f})."
                )
    return lines
