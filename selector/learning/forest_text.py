"""LightGBM's text of a regression model -> `Forest`, every number checked before it is used."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from selector.errors import SelectorError
from selector.learning.forest import CATEGORICAL, Flags, Forest
from selector.typing import Matrix, Numbers

FIXED = {
    "version": "v4",
    "num_class": "1",
    "num_tree_per_iteration": "1",
    "label_index": "0",
    "objective": "regression",
}
"""Header of a model that predicts one number from a row."""
PER_NODE = ("split_feature", "decision_type", "left_child", "right_child", "internal_count")
PER_LEAF = ("leaf_value", "leaf_count")
WORD = 32
"""Categories in a number of LightGBM's sets."""
LARGEST_KIND = 11
LARGEST_COUNT = 2**53
NUMBER = re.compile(r"\d{1,9}")

UNUSED = ("split_gain", "leaf_weight", "internal_value", "internal_weight")
"""Lines of a tree that nobody reads, two fifths of the text; LightGBM does without them, too."""

Lines = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class ForestLimits:
    """What a model may have at most."""

    trees: int
    leaves: int
    features: tuple[str, ...]
    """Their names; the last one is categorical."""
    categories: int


def read_forest(text: str, limits: ForestLimits) -> Forest:
    """Read a model that LightGBM has written.

    Raises:
        SelectorError: It is no such model, exceeds the limits, or a tree of it is none: numbers
            missing or out of range, a node that two others or none lead to, a value that is not
            finite. The tree is named.
    """
    trees = _trees(text, limits)
    leaves = np.array(
        [_whole(lines, "num_leaves", 1, limits.leaves, n) for n, lines in enumerate(trees)]
    )
    for number, lines in enumerate(trees):
        if lines.get("is_linear", "0") != "0":
            raise _fault("is_linear", number, "not 0")
    nodes = {name: _padded(trees, name, leaves - 1) for name in (*PER_NODE, "threshold")}
    of_leaves = {name: _padded(trees, name, leaves) for name in PER_LEAF}
    _check_nodes(nodes, leaves, limits)
    _check_range(of_leaves["leaf_count"], "leaf_count", 0, LARGEST_COUNT)
    whole = {name: nodes[name].astype(np.intp) for name in PER_NODE}
    places, sets = _category_sets(trees, whole, nodes["threshold"], limits)
    return Forest(
        text=text,
        features=len(limits.features),
        leaves=leaves,
        feature=whole["split_feature"],
        threshold=nodes["threshold"],
        kind=whole["decision_type"],
        left=whole["left_child"],
        right=whole["right_child"],
        category_nodes=places,
        category_left=sets,
        leaf_value=of_leaves["leaf_value"],
        leaf_count=of_leaves["leaf_count"],
        node_count=nodes["internal_count"],
    )


def slim(text: str) -> str:
    """A model's text without `UNUSED`: the same predictions, in fewer bytes.

    Args:
        text: As LightGBM has written it.
    """
    head, _, body = text.partition("\n\n")
    trees, end, tail = body.partition("end of trees\n")
    kept = [line for line in trees.split("\n") if not line.startswith(UNUSED)]
    blocks = ["Tree=" + block for block in "\n".join(kept).split("Tree=")[1:]]
    sizes = " ".join(str(len(block)) for block in blocks)
    head = re.sub(r"^tree_sizes=.*$", f"tree_sizes={sizes}", head, flags=re.MULTILINE)
    return f"{head}\n\n{''.join(blocks)}{end}{tail}"


def _trees(text: str, limits: ForestLimits) -> list[Lines]:
    """The lines of every tree, once the header fits.

    Raises:
        SelectorError: The header is another model's, or its sizes are not those of the trees.
    """
    head, _, body = text.partition("\n\n")
    first, *lines = head.split("\n")
    if first != "tree":
        raise SelectorError("it does not begin as a model of LightGBM does")
    header = dict(line.split("=", 1) for line in lines if "=" in line)
    fixed = {**FIXED, "max_feature_idx": str(len(limits.features) - 1)}
    for name, value in fixed.items():
        if header.get(name) != value:
            raise SelectorError(f"its {name} is {header.get(name, 'missing'):.40}, not {value}")
    # LightGBM keeps no blanks in names.
    if header.get("feature_names", "").split() != [re.sub(r"\s", "_", n) for n in limits.features]:
        raise SelectorError("it has other features than its description names")
    sizes = header.get("tree_sizes", "").split()
    if not 1 <= len(sizes) <= limits.trees:
        raise SelectorError(f"it has {len(sizes)} trees, and its settings say {limits.trees}")
    blocks = _blocks(body, sizes)
    return [_lines(block, number) for number, block in enumerate(blocks)]


def _blocks(body: str, sizes: Sequence[str]) -> list[str]:
    """The text of every tree."""
    found, start = [], 0
    for size in sizes:
        end = start + (int(size) if NUMBER.fullmatch(size) else 0)
        found.append(body[start:end])
        start = end
    if not body[:start].isascii() or not body[start:].startswith("end of trees\n"):
        raise SelectorError("its tree_sizes are not the sizes of its trees")
    return found


def _lines(block: str, number: int) -> Lines:
    first, *lines = block.split("\n")
    if first != f"Tree={number}":
        raise SelectorError(f"its tree {number} begins with {first:.20}")
    return dict(line.split("=", 1) for line in lines if "=" in line)


def _padded(trees: Sequence[Lines], name: str, counts: Numbers) -> Matrix:
    """One line of every tree as numbers, shape (trees, most numbers).

    Raises:
        SelectorError: A tree has more or fewer of them, or one that is not finite.
    """
    parts = [lines.get(name, "").split() for lines in trees]
    sizes = np.array(list(map(len, parts)))
    if name == "leaf_count":  # A tree of one leaf may have no counts.
        parts = [
            part or ["0"] if one == 1 else part for part, one in zip(parts, counts, strict=True)
        ]
        sizes = np.maximum(sizes, counts == 1)
    if (sizes != counts).any():
        number = int(np.flatnonzero(sizes != counts)[0])
        raise _fault(name, number, f"{sizes[number]} numbers instead of {counts[number]}")
    # A split between gaps and all else has an infinite threshold; where no node is, all go left.
    split = name == "threshold"
    found = np.full((len(trees), int(counts.max())), np.inf if split else 0.0)
    try:
        numbers = np.array(list(map(float, chain.from_iterable(parts))), np.float64)
    except ValueError as error:
        raise SelectorError(f"its {name} is no list of numbers: {error}") from error
    found[np.arange(found.shape[1]) < counts[:, None]] = numbers
    _check(np.isnan(found) if split else ~np.isfinite(found), name, "a number that is not finite")
    return found


def _check_nodes(nodes: Mapping[str, Matrix], leaves: Numbers, limits: ForestLimits) -> None:
    """Make sure that every node and leaf but the root is below one earlier node.

    Raises:
        SelectorError: One is below none, below two, or below a later one.
    """
    _check_range(nodes["split_feature"], "split_feature", 0, len(limits.features) - 1)
    _check_range(nodes["decision_type"], "decision_type", 0, LARGEST_KIND)
    _check_range(nodes["internal_count"], "internal_count", 0, LARGEST_COUNT)
    most = nodes["left_child"].shape[1]
    places = np.arange(most)
    there = places < (leaves - 1)[:, None]
    for name in ("left_child", "right_child"):
        child = nodes[name]
        _check_range(child, name, -limits.leaves, limits.leaves)
        # Leaf l stands as -1 - l.
        outside = (child < -leaves[:, None]) | (child >= (leaves - 1)[:, None])
        _check(there & (outside | ((child >= 0) & (child <= places))), name, "a child out of range")
    below = np.concatenate([nodes["left_child"], nodes["right_child"]], 1)
    # All different and in range, as many as there are: then none is missing.
    unlike = np.where(np.tile(there, 2), below, limits.leaves + 1 + np.arange(2 * most))
    _check(np.diff(np.sort(unlike, 1), axis=1) == 0, "children", "one twice")


def _category_sets(
    trees: Sequence[Lines], nodes: Mapping[str, Numbers], threshold: Matrix, limits: ForestLimits
) -> tuple[Numbers, Flags]:
    """Places of the categorical nodes, and which categories go left there."""
    places = np.flatnonzero(nodes["decision_type"] & CATEGORICAL)
    size = -(-limits.categories // WORD)
    table = np.zeros((len(places), size), np.uint32)
    for row, place in zip(table, places.tolist(), strict=True):
        number, node = divmod(place, threshold.shape[1])
        if nodes["split_feature"][number, node] != len(limits.features) - 1:
            raise _fault("split_feature", number, "a number as a category")
        words = _category_words(trees[number], threshold[number, node], size, number)
        row[: len(words)] = words
    bits = (table[:, :, None] >> np.arange(WORD, dtype=np.uint32)) & np.uint32(1)
    return places, bits.reshape(len(places), size * WORD).astype(bool)


def _category_words(lines: Lines, which: float, size: int, number: int) -> list[int]:
    """One of a tree's sets of categories, as bits.

    Raises:
        SelectorError: The tree has no such set.
    """
    parts = [lines.get(name, "").split() for name in ("cat_boundaries", "cat_threshold")]
    if not all(re.fullmatch(r"\d{1,10}", part) for part in chain.from_iterable(parts)):
        raise _fault("cat_threshold", number, "no list of whole numbers")
    bounds, words = (list(map(int, part)) for part in parts)
    if not (0 <= which < len(bounds) - 1 and which == int(which)):
        raise _fault("threshold", number, "no set of categories")
    first, last = bounds[int(which)], bounds[int(which) + 1]
    if not (0 <= first < last <= min(len(words), first + size)) or max(words) >= 2**WORD:
        raise _fault("cat_boundaries", number, "a set that is not in cat_threshold")
    return words[first:last]


def _whole(lines: Lines, name: str, least: int, most: int, number: int) -> int:
    text = lines.get(name, "")
    if not NUMBER.fullmatch(text) or not least <= int(text) <= most:
        raise _fault(name, number, f"{text:.20}, which is outside {least} to {most}")
    return int(text)


def _check_range(values: Matrix, name: str, least: int, most: int) -> None:
    wrong = (values < least) | (values > most) | (values != np.floor(values))
    _check(wrong, name, f"a number that is not within {least} to {most}")


def _check(wrong: Flags, name: str, what: str) -> None:
    if wrong.any():
        raise _fault(name, int(np.flatnonzero(wrong.any(1))[0]), what)


def _fault(name: str, number: int, what: str) -> SelectorError:
    return SelectorError(f"its tree {number} is none: {name} holds {what}")
