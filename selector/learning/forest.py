"""Regression trees as arrays: what they predict, with the very numbers that LightGBM gives.

Nothing native reads a tree that somebody else has written, and predicting needs no LightGBM.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from selector.typing import Matrix, Numbers

CATEGORICAL, DEFAULT_LEFT = 1, 2
ZERO_IS_MISSING, NAN_IS_MISSING = 1, 2
TINY = float(np.float32(1e-35))
"""What LightGBM takes for zero."""
ROWS = 64
"""Rows that are predicted at once: what fits the processor's cache."""
WORD = 64
Bits = npt.NDArray[np.unsignedinteger]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False, kw_only=True)
class Forest:
    """Trees whose values are summed. Arrays of shape (trees, nodes) or (trees, leaves), padded.

    A tree of n leaves has n - 1 nodes. A node's children come after it.
    """

    text: str
    """As LightGBM writes it."""
    features: int
    """Numbers that describe a row."""
    leaves: Numbers
    """Leaves of every tree, shape (trees,)."""
    feature: Numbers
    """What a node asks for."""
    threshold: Matrix
    """A row goes left where the feature is not above it; infinite where there is no node."""
    kind: Numbers
    """LightGBM's `decision_type`: whether the feature is categorical, and where gaps go."""
    left: Numbers
    """A child: a node, or a leaf l as -1 - l."""
    right: Numbers
    category_nodes: Numbers
    """Places of the categorical nodes, in the flat (trees, nodes)."""
    category_left: Flags
    """Which categories go left there, shape (categorical nodes, categories)."""
    leaf_value: Matrix
    leaf_count: Matrix
    """Rows of the training in a leaf."""
    node_count: Matrix

    @property
    def trees(self) -> int:
        """How many trees there are."""
        return len(self.leaves)

    def predict(self, features: npt.NDArray[np.floating]) -> Matrix:
        """The sum of the trees' values for every row, in their order.

        Args:
            features: Shape (rows, features).

        Returns:
            Shape (rows,).
        """
        found = np.empty(len(features))
        for start in range(0, len(features), ROWS):
            right = self.goes_right(features[start : start + ROWS])
            values = np.take_along_axis(self._ordered_values, self._place(right), 1)
            # One after the other, as LightGBM adds them: a pairwise sum has other last digits.
            found[start : start + ROWS] = np.add.accumulate(values, 0)[-1]
        return found

    def goes_right(self, features: npt.NDArray[np.floating]) -> Flags:
        """Whether rows go right at the nodes, shape (nodes, trees, rows)."""
        values = np.array(features.T, np.float64, order="C")
        values[np.abs(values) <= TINY] = 0.0
        columns = self._columns(values)
        found: Flags = columns.take(self._node_column, 0) <= self._node_threshold
        np.logical_not(found, out=found)
        if len(self.category_nodes):
            tree, node = np.divmod(self.category_nodes, self.feature.shape[1])
            codes = values[self.feature[tree, node]]
            size = self.category_left.shape[1]
            known = (codes > -1) & (codes < size)  # Neither gaps nor what was never seen.
            which: Numbers = np.where(known, codes, 0).astype(np.intp)
            goes_left = np.take_along_axis(self.category_left, which, 1) & known
            found[node * self.trees + tree] = ~goes_left
        return found.reshape(self.feature.shape[1], self.trees, len(features))

    def _columns(self, values: Matrix) -> Matrix:
        """Features as single nodes compare them: below every threshold where a gap goes left.

        Where it goes right it stays a gap, which is below nothing: a threshold may be infinite.
        """
        feature, kind = np.divmod(self._questions, 16)
        columns = values[feature]
        missing, gap = kind >> 2, np.isnan(columns)
        columns[gap] = 0.0
        fill = np.where(kind & DEFAULT_LEFT, -np.inf, np.nan)[:, None]
        absent = gap & (missing == NAN_IS_MISSING)[:, None]
        absent |= (columns == 0) & (missing == ZERO_IS_MISSING)[:, None]
        return np.where(absent, fill, columns)

    @cached_property
    def _asked(self) -> Numbers:
        """Feature and kind of every node as one number, node by node of all trees."""
        return np.ascontiguousarray((self.feature * 16 + self.kind).T).ravel()

    @cached_property
    def _questions(self) -> Numbers:
        """The different ones of these."""
        return np.unique(self._asked)

    @cached_property
    def _node_column(self) -> Numbers:
        return np.searchsorted(self._questions, self._asked)

    @cached_property
    def _node_threshold(self) -> Matrix:
        return np.ascontiguousarray(self.threshold.T).reshape(-1, 1)

    def _place(self, right: Flags) -> Numbers:
        """Where every row ends, from the left, shape (trees, rows).

        A row that goes right at a node ends in none of the leaves on its left. The first leaf that
        is left is the one (Lucchese et al., QuickScorer, SIGIR 2015).
        """
        place = np.full(right.shape[1:], -1, np.intp)
        for word, masks in enumerate(self._left_leaves):
            gone = np.zeros(right.shape[1:], masks.dtype)
            for mask, flags in zip(masks, right, strict=True):
                gone |= mask[:, None] * flags
            alive = ~gone
            first = np.frexp((alive & -alive).astype(np.float64))[1].astype(np.intp) - 1
            place = np.where((place < 0) & (first >= 0), first + word * WORD, place)
        return place

    @cached_property
    def leaf_ranges(self) -> tuple[Numbers, Numbers, Numbers]:
        """Of every node the first of its leaves from the left, how many are left, and how many.

        Each of shape (trees, nodes).
        """
        rows = np.arange(self.trees)
        first, on_left, size = np.zeros((3, *self.feature.shape), np.intp)
        for node in reversed(range(self.feature.shape[1])):
            sizes = [
                np.where(child < 0, 1, size[rows, np.maximum(child, 0)])
                for child in (self.left[:, node], self.right[:, node])
            ]
            there = node < self.leaves - 1
            on_left[:, node] = np.where(there, sizes[0], 0)
            size[:, node] = np.where(there, sizes[0] + sizes[1], 0)
        for node, tree, child, shift in self._edges(on_left):
            first[tree, child] = first[tree, node] + shift
        return first, on_left, size

    def _edges(self, on_left: Numbers) -> Iterator[tuple[int, Numbers, Numbers, Numbers]]:
        """Nodes from the root on, with the nodes below them and the leaves that these leave out."""
        none = np.zeros(self.trees, np.intp)
        for node in range(self.feature.shape[1]):
            for child, shift in (
                (self.left[:, node], none),
                (self.right[:, node], on_left[:, node]),
            ):
                tree = np.flatnonzero((child > 0) & (node < self.leaves - 1))
                yield node, tree, child[tree], shift[tree]

    @cached_property
    def _left_leaves(self) -> list[Bits]:
        """Leaves on the left of every node as bits, shape (nodes, trees), for each word of them."""
        first, on_left, _ = self.leaf_ranges
        most = max(1, int(self.leaves.max(initial=1)))
        width = next((w for w in (8, 16, 32) if most <= w), WORD)
        found = []
        for begin in range(0, most, WORD):
            low, high = (np.clip(x - begin, 0, width) for x in (first, first + on_left))
            found.append((_ones(high) & ~_ones(low)).astype(f"uint{width}").T.copy())
        return found

    @cached_property
    def leaf_order(self) -> Numbers:
        """The leaves of every tree from the left, shape (trees, leaves)."""
        first, on_left, _ = self.leaf_ranges
        order = np.zeros(self.leaf_value.shape, np.intp)
        for node in range(self.feature.shape[1]):
            for child, shift in (
                (self.left[:, node], np.zeros(self.trees, np.intp)),
                (self.right[:, node], on_left[:, node]),
            ):
                tree = np.flatnonzero((child < 0) & (node < self.leaves - 1))
                order[tree, (first[:, node] + shift)[tree]] = ~child[tree]
        return order

    @cached_property
    def _ordered_values(self) -> Matrix:
        return np.take_along_axis(self.leaf_value, self.leaf_order, 1)


def _ones(count: Numbers) -> Bits:
    """Numbers whose `count` lowest bits are ones."""
    full = count >= WORD
    ones = (np.uint64(1) << np.where(full, 0, count).astype(np.uint64)) - np.uint64(1)
    found: Bits = np.where(full, np.uint64(2**64 - 1), ones)
    return found
