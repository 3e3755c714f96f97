"""The part of the data card that is counted: networks, columns, what the audit found."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from selector.errors import SelectorError
from selector.files import write_text
from selector.records.provenance import ORIGINS, Provenance
from selector.records.records import Records
from training.audit.columns import COLUMNS
from training.evaluation.weights import network_of
from training.reporting.markdown import markdown_table
from training.reporting.result_file import RESULTS
from training.zoo.shared_third_party import third_party_folder, third_party_info
from training.zoo.third_party import FOREIGN

CARD = "README.md"
TRAININGS = "trainings.json"
"""Results of the networks' trainings, kept with the records, so that the card needs no weights."""
BEGIN = "<!-- From here on written by `python -m training data-card`. -->"


@dataclass(frozen=True)
class Training:
    """Result of the training of a recorded network.

    Attributes:
        test_accuracy: Share of all test images of its data set that it classifies right.
        train_loss_nats: Mean loss over the last epoch, augmentation and smoothing included.
        fingerprint: Of the spec that it was trained by.
    """

    test_accuracy: float
    train_loss_nats: float | None = None
    fingerprint: str = ""


def write_card(data: Path, weights: Path | None = None, audit: Path | None = None) -> Path:
    """Write the counted part of a data card; what stands above it is left as it is.

    Args:
        data: Folder of records; `README.md` in it is the card.
        weights: Folder of `NAME.json` files, from which the trainings are brought up to date.
        audit: Result of `benchmark-records`, by default the one that is kept here.

    Raises:
        SelectorError: The records cannot be read, or the card has no place for the counted part.
    """
    records = Records.load(data)
    path = data / CARD
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if text.count(BEGIN) != 1:
        raise SelectorError(f"{path} must hold this line once: {BEGIN}")
    trainings = _trainings(records, data, weights)
    kept = {name: asdict(training) for name, training in sorted(trainings.items())}
    write_text(data / TRAININGS, json.dumps(kept, indent=1) + "\n")
    parts = [
        text[: text.index(BEGIN)] + BEGIN,
        *counts(records),
        *network_tables(records.networks, trainings),
        *column_tables(),
        *audit_part(RESULTS / "records.json" if audit is None else audit),
    ]
    write_text(path, "\n\n".join(parts) + "\n")
    return path


def _trainings(records: Records, data: Path, weights: Path | None) -> dict[str, Training]:
    """What is kept of the recorded networks, and what the folder of weights adds."""
    try:
        path = data / TRAININGS
        kept = json.loads(path.read_text()) if path.exists() else {}
        found = {}
        for p in records.networks:
            about = None if weights is None else weights / f"{p.network}.json"
            if about is not None and about.exists():
                kept[p.network] = json.loads(about.read_text())
            if p.network in FOREIGN:
                kept[p.network] = {"test_accuracy": FOREIGN[p.network].top1_percent / 100}
            if p.origin == "third_party" and third_party_folder() is not None:
                info = third_party_info(network_of(p.network))
                kept[p.network] = {"test_accuracy": info.top1_percent / 100}
            if p.network in kept:
                row = kept[p.network]
                loss, spec = row.get("train_loss_nats"), row.get("fingerprint", "")
                found[p.network] = Training(float(row["test_accuracy"]), loss, str(spec))
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SelectorError(f"the trainings of {data} cannot be read: {error!r}") from error


def counts(records: Records) -> list[str]:
    """How many there are of everything."""
    rows = []
    for origin in ORIGINS:
        part = records.of_origin(origin)
        if part.networks:
            states = Counter(g.context == "unpruned" for g in part.groups)
            rows.append(
                {
                    "origin": origin,
                    "networks": len(part.networks),
                    "families": len({p.family for p in part.networks}),
                    "data sets": len({p.dataset for p in part.networks}),
                    "groups, unpruned": states[True],
                    "groups, in pruned states": states[False],
                    "decisions": sum(1 for _ in part.decisions()),
                    "candidates": len(part.candidates),
                    "of them recalibrated": sum(
                        row.recalibrated_nats is not None for row in part.candidates
                    ),
                }
            )
    return ["## Counts", table(rows)]


def network_tables(networks: Sequence[Provenance], trainings: Mapping[str, Training]) -> list[str]:
    """Every network, with its test accuracy."""
    rows = []
    for p in sorted(
        networks, key=lambda p: (ORIGINS.index(p.origin), p.dataset, p.family, p.network)
    ):
        training = trainings.get(p.network)
        rows.append(
            {
                "network": f"`{p.network}`",
                "family": p.family,
                "data set": p.dataset,
                "origin": p.origin,
                "test accuracy": "not kept"
                if training is None
                else f"{training.test_accuracy:.1%}",
                "training loss, nats": _number(
                    None if training is None else training.train_loss_nats, ".3f"
                ),
                "MACs": _number(p.macs, ".3g"),
                "parameters": _number(p.parameters, ".3g"),
                "images of each part": p.images,
                "unseen": {None: "not kept", True: "yes", False: "no"}[p.unseen],
                "device": p.device or "not kept",
            }
        )
    return ["## Networks", table(rows)]


def column_tables() -> list[str]:
    """What every column of the two files says."""
    parts = []
    for file, columns in COLUMNS.items():
        rows = [{"column": f"`{c.name}`", "unit": c.unit, "what": c.what} for c in columns]
        one = "a group in one state of its network" if "group" in file else "a candidate"
        parts += [f"## `{file}`, one row {one}", table(rows)]
    return parts


def audit_part(path: Path) -> list[str]:
    """What `benchmark-records` found, and on how many networks.

    Raises:
        SelectorError: The result cannot be read.
    """
    try:
        found = json.loads(path.read_text())
        summary, rows = found["summary"], found["rows"]
        parts = [row for row in rows if "decisions of" in row]
        wins = [row for row in rows if "wins" in row]
        near = [str(row["near-copies"]) for row in rows if "near-copies" in row]
        networks, decisions = int(summary["networks"]), int(summary["decisions"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SelectorError(
            f"{path} is no audit of records ({error!r}); run python -m training benchmark-records"
        ) from error
    said = (
        f"Of {networks} own networks, {decisions} decisions ({found['date']}, `{found['command']}`;"
        " plots: `training/benchmarks/results/records.png`). *Split-half* is the rank correlation"
        " of the two splits within a decision; the others are mean normalised regrets, capped at 3:"
        " of the single best arm of all other families (SBS), the oracle (VBS), the median arm."
    )
    copies = f"Near-copies (rank correlation above 0.95): {', '.join(near) or 'none'}."
    shares = [{"arm": f"`{row['arm']}`", "decisions won": f"{row['wins']:.1%}"} for row in wins]
    return ["## What can be learnt from them", said, table(parts), table(shares), copies]


def _number(value: float | None, form: str) -> str:
    return "not kept" if value is None else f"{value:{form}}"


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as a Markdown table; the columns are those of the first."""
    columns = list(rows[0])
    return markdown_table(columns, [[str(row[c]) for c in columns] for row in rows])
