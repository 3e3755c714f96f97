"""What is learnt without a network: a selector, the single best metric, a fixed portfolio."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from selector.learning import boosters, features, prediction, table, uncertainty
from selector.learning import selector as learnt_selector
from selector.learning.artefact import shipped_file
from selector.learning.selector import SaliencySelector
from selector.records import decision, describe
from selector.records.layout import CANDIDATES_FILE, GROUPS_FILE
from selector.records.records import Records
from training.benchmarks.common.subjects import Subject
from training.evaluation import weights
from training.evaluation.baselines import greedy_portfolio
from training.evaluation.protocol import table_of

PORTFOLIO = 3
"""Arms of the fixed portfolio."""
_CODE = (
    boosters,
    decision,
    describe,
    features,
    learnt_selector,
    prediction,
    table,
    uncertainty,
    weights,
)


@dataclass(frozen=True)
class Learnt:
    """Saved selectors that know nothing of a network's family."""

    selector: Path
    portfolio: Path
    """A selector that knows the arms of the fixed portfolio alone: with all of its candidates
    measured, it is that portfolio with the oracle."""
    single_best: str


def learn_without(subject: Subject, others: Iterable[Subject], data: Path, folder: Path) -> Learnt:
    """What records of other families teach, read from the folder if it was learnt before.

    For a foreign network, of which there are no records, the selector is the shipped one, and the
    portfolio is that of all records.

    Args:
        subject: The network to be judged.
        others: All the networks that are judged; none of them is learnt from.
        data: Folder of the records.
        folder: Where what is learnt is kept, under a name that changes with records and code.
    """
    if subject.family is None:
        selector, names = shipped_file("selector"), _known(data)
    else:
        judged = {other.name for other in others}
        names = {n: f for n, f in _known(data).items() if n not in judged and f != subject.family}
        selector = folder / f"selector-{_digest(data, tuple(sorted(names)))}"
        _fit(selector, data, tuple(sorted(names)), portfolio=False)
    portfolio = folder / f"portfolio-{_digest(data, tuple(sorted(names)))}"
    _fit(portfolio, data, tuple(sorted(names)), portfolio=True)
    return Learnt(selector, portfolio, opened(selector).single_best_)


def learn_without_family(family: str, data: Path, folder: Path) -> Path:
    """A selector of the records of all other families, from the folder if it was learnt before."""
    names = tuple(sorted(n for n, f in _known(data).items() if f != family))
    found = folder / f"selector-{_digest(data, names)}"
    _fit(found, data, names, portfolio=False)
    return found


@cache
def opened(folder: Path) -> SaliencySelector:
    """A saved selector, read once."""
    return SaliencySelector.load(folder)


def digest_of(folder: Path) -> str:
    """What tells a saved selector from others: its description holds checksums of the rest."""
    return hashlib.sha256((folder / "selector.json").read_bytes()).hexdigest()[:12]


def _fit(folder: Path, data: Path, names: tuple[str, ...], *, portfolio: bool) -> None:
    # A folder with this file is whole.
    if (folder / "selector.json").exists():
        return
    records = _records(data).of_networks(names)
    if portfolio:
        table = table_of(records)
        arms = [table.arms[n] for n in greedy_portfolio(table, PORTFOLIO)]
        rows = tuple(row for row in records.candidates if row.arm in arms)
        records = replace(records, candidates=rows)
    SaliencySelector().fit(records, weights.weights_of(names)).save(folder)


@cache
def _records(data: Path) -> Records:
    return Records.load(data)


@cache
def _known(data: Path) -> dict[str, str]:
    """Network -> family, of all recorded networks that may be learnt from."""
    return {p.network: p.family for p in _records(data).networks if not p.for_tests}


@cache
def _digest(data: Path, names: tuple[str, ...]) -> str:
    """Changes with the records of these networks, and with the code that learns."""
    files = [data / name / file for name in names for file in (GROUPS_FILE, CANDIDATES_FILE)]
    files += [Path(str(module.__file__)) for module in _CODE]
    parts = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    return hashlib.sha256(json.dumps([names, parts]).encode()).hexdigest()[:12]
