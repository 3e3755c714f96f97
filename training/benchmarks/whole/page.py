"""What four kinds of widths are worth, as the document shows it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from training.benchmarks.common.differences import differences_in_words
from training.benchmarks.whole.runs import (
    EVEN,
    KEPT,
    KEPT_ON_IMAGENET,
    LAMP,
    MEASURED,
    WIDTHS,
)
from training.reporting.markdown import in_list, markdown_table, percent_text
from training.reporting.marked_part import put
from training.reporting.result_file import read_result

TITLES: Mapping[str, str] = {
    EVEN: "even",
    LAMP: "LAMP",
    WIDTHS: "predicted",
    MEASURED: "measured",
}
"""Way -> column of the documents."""
SHARES = (KEPT_ON_IMAGENET, *KEPT[MEASURED])

Table = Mapping[tuple[str, float], Mapping[str, Mapping[str, Any]]]
"""Network and share of the MACs -> way -> row; of networks with all ways."""


def update_page(page: Path, results: Path) -> None:
    """Put tables and sentences between the marks of a page.

    Raises:
        SelectorError: No result file, or no marks.
    """
    found = read_result("whole", "benchmark-whole", results)
    table = compared(found["rows"])
    parts = [
        markdown_table(["MACs", "networks", *TITLES.values(), "time"], means(table)),
        "On ImageNet, 400 test images:\n\n"
        + markdown_table(["network", "role", "unpruned", *TITLES.values()], on_imagenet(table)),
        in_list(differences_in_words(found["summary"], words())),
    ]
    put(page, "widths", "\n\n".join(parts).strip())


def compared(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows of networks that were pruned with all kinds of widths."""
    found: dict[tuple[str, float], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        if row["way"] in TITLES:
            found.setdefault((row["network"], row["keep_macs"]), {})[row["way"]] = row
    return {key: ways for key, ways in found.items() if len(ways) == len(TITLES)}


def means(table: Table) -> list[list[str]]:
    """Mean accuracy by share of the MACs, and how much longer measuring takes in the median."""
    lines = []
    for keep in SHARES:
        some = [ways for (_, share), ways in table.items() if share == keep]
        if some:
            left = [percent_text(mean(ways[way]["left"] for ways in some)) for way in TITLES]
            longer = median(ways[MEASURED]["seconds"] / ways[WIDTHS]["seconds"] for ways in some)
            where = f"{keep:.0%}" + (", ImageNet" if keep == KEPT_ON_IMAGENET else "")
            lines.append([where, f"{len(some)}", *left, f"{longer:.1f} x"])
    return lines


def on_imagenet(table: Table) -> list[list[str]]:
    """Network by network, for ImageNet."""
    return [
        [
            network,
            ways[EVEN]["role"],
            percent_text(ways[EVEN]["unpruned"]),
            *(percent_text(ways[way]["left"]) for way in TITLES),
        ]
        for (network, keep), ways in table.items()
        if keep == KEPT_ON_IMAGENET
    ]


def words() -> dict[str, str]:
    """Key of the summary -> what the documents say of it."""
    said = {
        "measured_over_widths": "Measured widths over predicted ones",
        "measured_over_even": "Measured widths over even ones",
        "widths_over_even": "Predicted widths over even ones",
        "widths_over_lamp": "Predicted widths over LAMP's",
        "lamp_over_even": "LAMP's widths over even ones",
    }
    return {
        f"{key}_{100 * keep:.0f}": f"{what}, at {keep:.0%} of the MACs"
        + (" on ImageNet" if keep == KEPT_ON_IMAGENET else "")
        for key, what in said.items()
        for keep in SHARES
    }
