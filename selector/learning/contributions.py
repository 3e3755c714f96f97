r"""What every feature adds to a prediction of trees: Shapley values along the trees' paths.

In a leaf's game, a feature that is known counts 1 or 0, as the row passes all of the path's splits
on it or not; one that is not known counts :math:`z`, the share of the training rows that pass.

.. math:: \phi_i = \sum_\text{leaves} v \, (o_i - z_i)
    \int_0^1 \prod_{j \ne i} \big(z_j (1 - t) + o_j t\big) \, dt

The integral weighs all orders in which features become known; of a polynomial, a few Gauss-Legendre
points give it exactly.

Source:
    Lundberg et al., arXiv 1802.03888, which LightGBM's `pred_contrib` follows.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from selector.learning.forest import Flags, Forest
from selector.typing import Matrix, Numbers

LEAST = 1e-30
"""Share of the training rows that is counted where there were none."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Paths:
    """The splits on the way to every leaf, those on one feature of a leaf together.

    Leaves are numbered over all trees, (tree, place from the left) as a flat number.
    """

    split: Numbers
    """Node of every split, node * trees + tree, sorted by leaf and feature."""
    right: Flags
    """Whether the leaf is on the right there."""
    starts: Numbers
    """The first split of every pair of a leaf and a feature."""
    first: Numbers
    """The first pair of every leaf."""
    leaf: Numbers
    """The leaf of every pair, by its number among those that have pairs."""
    value: Matrix
    """The value of every pair's leaf."""
    feature: Numbers
    share: Matrix
    """Training rows that pass, for every pair."""

    @classmethod
    def of(cls, forest: Forest) -> "Paths":
        """Follow every path from the root."""
        first, on_left, size = (part.ravel() for part in forest.leaf_ranges)
        width = forest.leaf_value.shape[1]
        tree, node = np.divmod(np.arange(len(first)), max(1, width - 1))
        # Every node is on the way to each of its leaves.
        which = np.repeat(np.arange(len(first)), size)
        offset = np.arange(len(which)) - np.repeat(np.cumsum(size) - size, size)
        leaf = tree[which] * width + first[which] + offset
        right = offset >= on_left[which]
        order = np.lexsort((forest.feature.ravel()[which], leaf))
        which, leaf, right = which[order], leaf[order], right[order]
        feature = forest.feature.ravel()[which]
        new = np.diff(leaf, prepend=-1).astype(bool) | np.diff(feature, prepend=-1).astype(bool)
        starts = np.flatnonzero(new)
        shares = _shares(forest)[right.astype(np.intp), which]
        owner, first_pair, number = np.unique(leaf[starts], return_index=True, return_inverse=True)
        values = np.take_along_axis(forest.leaf_value, forest.leaf_order, 1).ravel()
        return cls(
            split=node[which] * forest.trees + tree[which],
            right=right,
            starts=starts,
            first=first_pair,
            leaf=number,
            value=values[owner[number]],
            feature=feature[starts],
            share=np.multiply.reduceat(shares, starts) if len(starts) else np.zeros(0),
        )

    @property
    def longest(self) -> int:
        """Most features on one way."""
        return int(np.bincount(self.leaf).max())


def _shares(forest: Forest) -> Matrix:
    """The share of a node's training rows that goes left, and right; shape (2, trees * nodes)."""
    counts = np.maximum(forest.node_count, 1)
    rows = np.arange(forest.trees)[:, None]
    found = []
    for child in (forest.left, forest.right):
        below = np.where(
            child < 0,
            forest.leaf_count[rows, np.maximum(~child, 0)],
            forest.node_count[rows, np.maximum(child, 0)],
        )
        found.append((below / counts).ravel())
    return np.stack(found)


def contributions(forest: Forest, paths: Paths, features: npt.NDArray[np.floating]) -> Matrix:
    """What every feature adds to the prediction of rows.

    Args:
        forest: The trees.
        paths: Its `Paths`.
        features: Shape (rows, features).

    Returns:
        Shape (rows, features + 1); the last is what is predicted before any feature is seen. A
        row's sum is its prediction.
    """
    right = forest.goes_right(features).reshape(forest.feature.size, len(features))
    passed = right[paths.split] == paths.right[:, None]
    found = np.zeros((len(features), forest.features + 1))
    found[:, -1] = _expected(forest)
    if len(paths.starts):
        known = np.logical_and.reduceat(passed, paths.starts, 0)
        for row, flags in enumerate(known.T):
            parts = _parts(paths, flags.astype(np.float64)) * paths.value
            found[row, :-1] = np.bincount(paths.feature, parts, forest.features)
    return found


def _parts(paths: Paths, known: Matrix) -> Matrix:
    """The Shapley value of every pair of a leaf and a feature, in the game of that leaf."""
    # Above zero, so that the product of the others is the product of all over a feature's own.
    share = np.maximum(paths.share, LEAST)
    slope = known - share
    total = np.zeros(len(share))
    # n points integrate a polynomial of degree 2n - 1 exactly; this one's is `longest` - 1.
    points, weights = np.polynomial.legendre.leggauss((paths.longest + 1) // 2)
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        factors = share + slope * point
        products = np.multiply.reduceat(factors, paths.first) * weight
        total += products[paths.leaf] / factors
    found: Matrix = slope * total
    return found


def _expected(forest: Forest) -> float:
    """The mean value of the trees over their training rows."""
    if not forest.feature.shape[1]:
        return float(forest.leaf_value[:, 0].sum())
    roots = np.maximum(forest.node_count[:, :1], 1)
    means = (forest.leaf_value * forest.leaf_count / roots).sum(1)
    return float(np.where(forest.leaves == 1, forest.leaf_value[:, 0], means).sum())
