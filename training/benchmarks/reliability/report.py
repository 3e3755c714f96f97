"""All parts of the reliability benchmark: run what is missing, print a table, write the numbers."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from selector.tables import text_table
from training.benchmarks.reliability import (
    fuzzing,
    kills,
    load,
    random_networks,
    worker_kills,
)
from training.benchmarks.reliability.samples import make_samples
from training.reporting.result_file import RESULTS, result_if_there, write_result
from training.reporting.run_file import RunFile

PARTS = ("kills", "fuzzing", "networks", "load")


def run(
    parts: Sequence[str], minutes: float | None, work: Path, results: Path = RESULTS
) -> dict[str, float]:
    """Run what is not there yet, then write `reliability.json` from all that is there.

    Args:
        parts: Of `PARTS`.
        minutes: Begin no run later, in each part.
        work: Folder of the runs, of samples and of large data.
        results: Where the result file goes.

    Returns:
        The summary; of a part of which nothing was run here, what the result file says stays.
    """
    work.mkdir(parents=True, exist_ok=True)
    samples = work / "samples"
    killed = RunFile(work / "kills.jsonl", kills.KillRun.parse)
    fuzzed = RunFile(work / "fuzzing.jsonl", fuzzing.FuzzRun.parse)
    judged = RunFile(work / "networks.jsonl", random_networks.NetworkRun.parse)
    loaded = RunFile(work / "load.jsonl", load.LoadRun.parse)
    if {"kills", "fuzzing"} & set(parts):
        make_samples(samples)
    if "kills" in parts:
        tries = kills.calls(samples) | worker_kills.calls()
        killed.complete(tries, jobs=1, minutes=minutes)
    if "fuzzing" in parts:
        fuzzed.complete(fuzzing.calls(samples), jobs=1, minutes=minutes)
    if "networks" in parts:
        judged.complete(random_networks.calls(), jobs=1, minutes=minutes)
    if "load" in parts:
        loaded.complete(load.calls(work), jobs=1, minutes=minutes)
    tables = (
        _kills(list(killed.read().values())),
        _fuzzing(list(fuzzed.read().values())),
        _networks(list(judged.read().values())),
        _load(list(loaded.read().values())),
    )
    before = result_if_there("reliability", results) or {"summary": {}, "rows": []}
    summary: dict[str, float] = {}
    rows: list[dict[str, object]] = []
    for part, (numbers, lines) in zip(PARTS, tables, strict=True):
        if not lines:
            summary |= {k: v for k, v in before["summary"].items() if _part_of(k) == part}
            rows += [row for row in before["rows"] if row.get("part") == part]
        summary |= numbers
        rows += lines
        if lines:
            columns = list(lines[0])
            print(text_table(columns, [[f"{line[name]}" for name in columns] for line in lines]))
    print(write_result("reliability", summary, rows, results))
    return summary


def _part_of(number: str) -> str:
    """The part that a number of the summary is of."""
    words = {"kill": "kills", "lost": "kills", "fuzz": "fuzzing", "random": "networks"}
    return next((part for word, part in words.items() if number.startswith(word)), "load")


Table = tuple[dict[str, float], list[dict[str, object]]]


def _kills(runs: Sequence[kills.KillRun]) -> Table:
    """Counts by scenario and kind of kill."""
    if not runs:
        return {}, []
    rows: list[dict[str, object]] = []
    for scenario, how in dict.fromkeys((run.scenario, run.how) for run in runs):
        of = [run for run in runs if (run.scenario, run.how) == (scenario, how)]
        rows.append(
            {
                "part": "kills",
                "scenario": scenario,
                "how": how,
                "tries": len(of),
                "died": sum(run.died for run in of),
                "lost": sum(run.lost for run in of),
                "half_written": sum(run.half_written for run in of),
                "other_numbers": sum(run.other_numbers for run in of),
                "remains": sum(run.remains for run in of),
                "errors": "; ".join(run.error for run in of if run.error)[:300],
            }
        )
    lost = sum(run.lost or run.half_written or run.other_numbers for run in runs)
    numbers = {
        "kills": sum(run.died for run in runs),
        "lost": lost,
        "kill_tries": len(runs),
        "kill_remains": sum(run.remains for run in runs),
    }
    return {name: float(value) for name, value in numbers.items()}, rows


def _fuzzing(runs: Sequence[fuzzing.FuzzRun]) -> Table:
    """Counts by loader."""
    if not runs:
        return {}, []
    names = ("refused", "same", "changed", "unnoticed", "resealed", "crashes", "hangs", "memory")
    rows: list[dict[str, object]] = []
    for loader in dict.fromkeys(run.loader for run in runs):
        of = [run for run in runs if run.loader == loader]
        faults = [text for run in of for text in run.foreign]
        rows.append(
            {
                "part": "fuzzing",
                "loader": loader,
                "files": sum(run.stop - run.start for run in of),
                **{name: sum(getattr(run, name) for run in of) for name in names},
                "foreign": sum(not _is_counted(text) for text in faults),
                "errors": "; ".join(faults)[:600],
            }
        )
    foreign = sum(not _is_counted(text) for run in runs for text in run.foreign)
    numbers = {
        "fuzzed": sum(run.stop - run.start for run in runs),
        "fuzz_crashes": sum(run.crashes for run in runs),
        "fuzz_foreign": foreign,
        "fuzz_hangs": sum(run.hangs for run in runs),
        "fuzz_memory": sum(run.memory for run in runs),
        "fuzz_unnoticed": sum(run.unnoticed for run in runs),
        "fuzz_resealed": sum(run.resealed for run in runs),
    }
    return {name: float(value) for name, value in numbers.items()}, rows


FAULTS = ("crash", "hang", "memory", "unnoticed")
"""Counted by themselves."""


def _is_counted(fault: str) -> bool:
    return fault.partition(": ")[2].startswith(FAULTS)


def _networks(runs: Sequence[random_networks.NetworkRun]) -> Table:
    """Counts, and the reasons of refusals."""
    if not runs:
        return {}, []
    refused: Counter[str] = Counter()
    for run in runs:
        refused.update(run.refused)
    groups = sum(run.groups for run in runs)
    total = groups + refused.total()
    rows: list[dict[str, object]] = [
        {"part": "networks", "refused": why, "groups": count, "share": round(count / total, 4)}
        for why, count in refused.most_common()
    ]
    faults = [text for run in runs for text in (*run.wrong, *run.crashes)]
    rows += [{"part": "networks", "refused": text, "groups": 1, "share": 0} for text in faults]
    numbers = {
        "random_networks": sum(run.stop - run.start for run in runs),
        "random_wrong": sum(len(run.wrong) for run in runs),
        "random_crashes": sum(len(run.crashes) for run in runs),
        "random_groups": groups,
        "random_refused_share": round(refused.total() / total, 4),
    }
    return {name: float(value) for name, value in numbers.items()}, rows


def _load(runs: Sequence[load.LoadRun]) -> Table:
    """What every load took."""
    rows: list[dict[str, object]] = [
        {
            "part": "load",
            "load": run.name,
            "seconds": round(run.seconds, 2),
            "cpu_seconds": round(run.cpu_seconds, 2),
            "gigabytes": round(run.gigabytes, 2),
            "found": ", ".join(f"{name} {value:.6g}" for name, value in run.found.items()),
        }
        for run in runs
    ]
    of = {run.name: run for run in runs}
    numbers: dict[str, float] = {}
    if "ten_million" in of:
        numbers["fit_ten_million_gb"] = round(of["ten_million"].gigabytes, 3)
        numbers["fit_ten_million_cpu_seconds"] = round(of["ten_million"].cpu_seconds, 1)
    if "folders" in of:
        numbers["folders_5000_seconds"] = round(of["folders"].seconds, 2)
        numbers["folders_5000_cpu_seconds"] = round(of["folders"].cpu_seconds, 2)
    if "groups" in of:
        found = of["groups"].found
        numbers["groups_1000_seconds"] = round(found["selector_explained_seconds"], 2)
        numbers["groups_1000_unexplained_seconds"] = round(found["selector_seconds"], 2)
    return numbers, rows
