"""Some of the decisions of records that are too many to be learnt from at once."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

DECISION = ("context", "group", "count")


def drawn(
    candidates: pa.Table, groups: pa.Table, share: float, seed: int
) -> tuple[pa.Table, pa.Table]:
    """Whole decisions of a network, drawn by chance, and the groups that they are of.

    Args:
        candidates: All candidates of a network.
        groups: Its groups.
        share: Of the decisions that are drawn; at least one is.
        seed: Of the chance; with the network's name it fixes what is drawn.
    """
    names = {*DECISION, "network"}
    if share >= 1 or not candidates.num_rows or not names <= set(candidates.column_names):
        return candidates, groups
    keys = np.stack([_numbers(candidates.column(name)) for name in DECISION])
    decision = np.unique(keys, axis=1, return_inverse=True)[1].ravel()
    count = int(decision.max()) + 1
    network = str(candidates.column("network")[0].as_py())
    chance = np.random.default_rng([seed, *network.encode(errors="replace")])
    kept = np.zeros(count, bool)
    kept[chance.permutation(count)[: max(1, round(share * count))]] = True
    rows = candidates.filter(pa.array(kept[decision]))
    return rows, _of_rows(groups, rows)


def _numbers(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """Values as numbers that are equal where they are."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    whole = column.unify_dictionaries().combine_chunks()
    return np.asarray(whole.indices.fill_null(-1))


def _of_rows(groups: pa.Table, rows: pa.Table) -> pa.Table:
    """The groups that some candidates are of."""
    if not set(DECISION[:2]) <= set(groups.column_names):
        return groups
    wanted = set(zip(*(rows.column(name).to_pylist() for name in DECISION[:2]), strict=True))
    there = zip(*(groups.column(name).to_pylist() for name in DECISION[:2]), strict=True)
    return groups.filter(pa.array([key in wanted for key in there]))
