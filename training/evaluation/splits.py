"""What is left out together: a family, a data set, or both."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from selector.errors import SelectorError
from selector.records.provenance import Provenance

SplitName = Literal["family", "dataset", "both", "third_party"]


@dataclass(frozen=True)
class Fold:
    """Networks to learn from, and networks to be judged on that have nothing to do with them."""

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]


def folds_of(networks: Sequence[Provenance], split: SplitName) -> list[Fold]:
    """Every network is in the test part of exactly one fold.

    Args:
        networks: Where the records come from.
        split: `family` or `dataset`: those of one are judged by what the others teach; `both`:
            those of one family on one data set, by what neither this family nor this data set
            teaches; `third_party`: those that others trained, by one's own.

    Raises:
        SelectorError: Nothing is left to learn from.
    """
    if split == "third_party":
        ours, theirs = (
            tuple(n.network for n in networks if (n.origin == "third_party") is other)
            for other in (False, True)
        )
        if len(ours) < 2 or not theirs:
            raise SelectorError(
                f"{len(ours)} networks of one's own and {len(theirs)} of others; record more"
            )
        return [Fold("third-party networks", ours, theirs)]
    keys = {n.network: _key(n, split) for n in networks}
    found = []
    for key in sorted(set(keys.values())):
        test = tuple(name for name, own in keys.items() if own == key)
        train = tuple(name for name, own in keys.items() if not set(own) & set(key))
        if len(train) < 2:
            raise SelectorError(
                f"leaving {key} out leaves {len(train)} networks to learn from; record networks of "
                "more families and data sets"
            )
        found.append(Fold(" on ".join(value for _, value in key), train, test))
    return found


def _key(network: Provenance, split: str) -> tuple[tuple[str, str], ...]:
    family, dataset = ("family", network.family), ("dataset", network.dataset)
    return {"family": (family,), "dataset": (dataset,), "both": (family, dataset)}[split]
