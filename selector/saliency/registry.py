"""Saliency metrics as values, and the table of them: `METRICS: name -> metric`.

A metric is a function of a group's signals that gives one score per channel; the lowest go first.
The order of reduction decides what a metric means, so every docstring writes it out. Every
combination of the grammar can also be asked for by its systematic name.

What a metric `needs` is a set: passes over the network, and statistics by name. A metric that needs
a statistic which nobody measures yet declares it in the same file, one function with a decorator:

```python
@selector.register_statistic("saturated", requires="forward")
def saturated(call):
    '''How many positions are beyond one, summed over images.'''
    return (call.values.abs() > 1).double().sum((0, 2))

@selector.register_metric("saturation", needs="saturated", source="our own")
def saturation(signals):
    '''Share of positions that are not saturated.'''
    return 1 - signals.statistic("saturated") / signals.at_consumers.positions
```

`selector/statistics/statistic.py` says what statistics of calls, of gradients and of whole batches
are given.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from selector.errors import SelectorError
from selector.saliency import activation as activations
from selector.saliency import gradient as gradients
from selector.saliency import second_order
from selector.saliency import weight as weights
from selector.saliency.grammar import need_of, parse
from selector.statistics import built_in as built_in
from selector.statistics.channel_statistics import Signals
from selector.statistics.statistic import Need, checked_needs, is_first_order

Score = Callable[[Signals], Tensor]
"""Signals -> scores of shape (channels,), float64; the lowest are pruned first."""


@dataclass(frozen=True)
class Metric:
    """A saliency metric: what it computes, what it needs, and where it comes from."""

    name: str
    score: Score
    needs: frozenset[Need]
    """Passes and statistics; see `selector/statistics/statistic.py`."""
    source: str
    arm: bool = False
    """Whether the selector may choose it. Near-copies of an arm, baselines and expensive metrics
    are not arms: an oracle call for them would be wasted."""
    twin: Callable[..., list[float]] | None = None
    """The same written in loops, for `selector.check_metric`; `scene -> scores`."""

    def __post_init__(self) -> None:
        """Make a set of the needs.

        Raises:
            SelectorError: An unknown need; the known ones are listed.
        """
        object.__setattr__(self, "needs", checked_needs(self.needs))

    def __call__(self, signals: Signals) -> Tensor:
        """Scores of shape (channels,), float64; computed once for the same signals."""
        if self.name not in signals.memo:
            signals.memo[self.name] = self.score(signals)
        scores: Tensor = signals.memo[self.name]
        return scores

    def applies(self, signals: Signals) -> bool:
        """Whether the group has what the metric needs."""
        return "normalisation" not in self.needs or signals.normalisation_scale is not None

    @property
    def listed_needs(self) -> str:
        """The needs in words: `forward, saturated`."""
        return ", ".join(sorted(self.needs))

    def checked(self, group: str, signals: Signals) -> Tensor:
        """One finite score for each channel of a group, shape (channels,), float64.

        Raises:
            SelectorError: The metric gives something else; it and the group are named.
        """
        values = self(signals)
        if not isinstance(values, Tensor) or values.shape != (signals.channels,):
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise SelectorError(
                f"metric {self.name!r} gives {shape} in group {group!r}, not one score for each of "
                f"its {signals.channels} channels"
            )
        if not bool(torch.isfinite(values).all()):
            raise SelectorError(
                f"metric {self.name!r} gives a score that is not finite in group {group!r}; "
                "check the network's weights there"
            )
        return values.double()

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return ((self.score.__doc__ or "").strip().splitlines() or [""])[0]


METRICS: dict[str, Metric] = {}
"""Name -> metric, in the order in which they are listed."""

RESERVED = frozenset(
    {
        "selector",
        "oracle",
        "reconstruction",
        "reconstruction_fisher",
        "joint_0",
        "joint_half",
        "joint_1",
        "joint_softened",
        "column_subset",
    }
)
"""Other criteria: these names no metric can have."""


def register_metric(
    name: str,
    *,
    needs: Need | Iterable[Need] = "backward",
    source: str = "",
    arm: bool = True,
    twin: Callable[..., list[float]] | None = None,
) -> Callable[[Score], Score]:
    """Add a metric to the table: scoring, records, the command line and the laws pick it up.

    ```python
    @selector.register_metric("tail", needs="backward", source="our own")
    def tail(signals):
        '''Root of the summed squares of activation x gradient.'''
        return signals.taylor.square.sqrt()
    ```

    Args:
        name: A new name, letters, digits and underscores.
        needs: What must be measured, one name or several: `weights`, `normalisation`, `forward`,
            `backward`, `second_order`, `hessian`, `flow`, `maps`, or statistics by name.
        source: Paper or origin.
        arm: Whether a selector that learns from now on may choose it.
        twin: The same in plain loops over a `Scene`; `selector.check_metric` compares the two.

    Raises:
        SelectorError: The name is taken or no name, or a need is unknown.
    """
    checked = checked_needs(needs)

    def register(score: Score) -> Score:
        if not name.isidentifier():
            raise SelectorError(
                f"metric name {name!r} must be made of letters, digits and underscores"
            )
        if name in METRICS or name in RESERVED:
            raise SelectorError(f"metric {name!r} is taken; choose another name")
        METRICS[name] = Metric(name, score, checked, source, arm, twin)
        return score

    return register


def find_metric(name: str) -> Metric:
    """The metric of that name, of the table or of the grammar.

    Raises:
        SelectorError: There is none; the known names are listed.
    """
    if name in METRICS:
        return METRICS[name]
    return _systematic(name)


@cache
def _systematic(name: str) -> Metric:
    score = parse(name)
    if score is None:
        raise SelectorError(
            f"unknown metric {name!r}; known: {', '.join(METRICS)}; or a combination "
            "BASE.POINTWISE.REDUCTION[.SCALING][@producers], such as activation.taylor.l2, that "
            "`saliency-selector metrics --grammar` lists"
        )
    return Metric(name, score, frozenset({need_of(name)}), "arXiv 1906.04675")


def first_order_metrics() -> list[str]:
    """Names of the table's metrics that one forward and backward pass gives: the default."""
    return [name for name, metric in METRICS.items() if is_first_order(metric.needs)]


def arms() -> list[str]:
    """Names of the metrics that a selector may choose."""
    return [name for name, metric in METRICS.items() if metric.arm]


def known_metrics(names: Iterable[str]) -> list[str]:
    """Those of the names that are in the table, in its order; then those of the grammar."""
    wanted = set(names)
    systematic = sorted(n for n in wanted if n not in METRICS and parse(n) is not None)
    return [name for name in METRICS if name in wanted] + systematic


def rank_mean(members: Iterable[str]) -> Score:
    """A metric that takes the mean of other metrics' ranks, leaving out those a group lacks."""
    names = tuple(members)

    def score(signals: Signals) -> Tensor:
        from scipy.stats import rankdata  # Takes seconds to import: only where it is used.

        found = [METRICS[name] for name in names if METRICS[name].applies(signals)]
        ranks = [torch.from_numpy(rankdata(metric(signals).numpy())) for metric in found]
        return torch.stack(ranks).mean(0) / signals.channels

    return score


def _add(name: str, score: Score, needs: Need, source: str, arm: bool = False) -> None:
    register_metric(name, needs=needs, source=source, arm=arm)(score)


_add("l1", weights.l1, "weights", "arXiv 1608.08710", arm=True)
_add("l2", weights.l2, "weights", "arXiv 1808.06866", arm=True)
_add("consumer_norm", weights.consumer_norm, "weights", "arXiv 2301.12900", arm=True)
_add("group_l2", weights.group_l2, "weights", "arXiv 2301.12900")
_add("batchnorm_scale", weights.batchnorm_scale, "normalisation", "arXiv 1708.06519", arm=True)
_add("fpgm", weights.fpgm, "weights", "arXiv 1811.00250", arm=True)
_add("whc", weights.whc, "weights", "arXiv 2302.08185")
_add("lamp", weights.lamp, "weights", "arXiv 2010.07611")
_add("mean_activation", activations.mean_activation, "forward", "arXiv 1611.06440", arm=True)
_add("activation_rms", activations.activation_rms, "forward", "arXiv 1906.04675", arm=True)
_add("activation_spread", activations.activation_spread, "forward", "IEEE Access 2015", arm=True)
_add("apoz", activations.apoz, "forward", "arXiv 1607.03250", arm=True)
_add("wanda", activations.wanda, "forward", "arXiv 2306.11695", arm=True)
_add("mean_gradient", gradients.mean_gradient, "backward", "arXiv 2004.03376", arm=True)
_add("taylor", gradients.taylor, "backward", "arXiv 1611.06440", arm=True)
_add("taylor_elementwise", gradients.taylor_elementwise, "backward", "arXiv 1906.04675", arm=True)
_add("taylor_2016", gradients.taylor_2016, "backward", "arXiv 1611.06440")
_add("taylor_gate", gradients.taylor_gate, "backward", "arXiv 1906.10771")
_add("fisher", gradients.fisher, "backward", "arXiv 1801.05787", arm=True)
_add("group_fisher", gradients.group_fisher, "backward", "arXiv 2108.00708")
_add("energy_gradient", gradients.energy_gradient, "backward", "this project", arm=True)
_add(
    "weight_taylor_squared",
    gradients.weight_taylor_squared,
    "backward",
    "arXiv 1906.10771",
    arm=True,
)
_add("weight_taylor_joint", gradients.weight_taylor_joint, "backward", "arXiv 1906.10771")
_add("snip", gradients.snip, "backward", "arXiv 1810.02340", arm=True)
_add("jacobian", gradients.jacobian, "backward", "arXiv 2508.05521", arm=True)
_add("synflow", weights.synflow, "flow", "arXiv 2006.05467")
_add("obd", second_order.obd, "second_order", "NIPS 1989")
_add("gauss_newton", second_order.gauss_newton, "second_order", "arXiv 1801.05787")
_add("second_taylor_gate", second_order.second_taylor_gate, "second_order", "arXiv 1906.04675")
_add("grasp", second_order.grasp, "hessian", "arXiv 2002.07376")
_add("hrank", activations.hrank, "rank", "arXiv 2002.10179")
_add("chip", activations.chip, "independence", "arXiv 2110.13981")

GRADIENT_FAMILY = tuple(n for n, metric in METRICS.items() if metric.needs == {"backward"})
FAMILY = tuple(first_order_metrics())

ensemble_of_all = rank_mean(FAMILY)
ensemble_of_all.__doc__ = r"""Mean rank of the channel under all metrics of first order.

.. math:: s_c = \frac{1}{M C} \sum_m \mathrm{rank}_m(c)

Ranks count from 1, ties share their mean; a metric that the group lacks is left out.

Source:
    A baseline of this project: what trusting everybody equally is worth.
"""
ensemble_of_gradients = rank_mean(GRADIENT_FAMILY)
ensemble_of_gradients.__doc__ = (ensemble_of_all.__doc__ or "").replace(
    "all metrics of first order", "the metrics that need a gradient"
)
_add("rank_mean", ensemble_of_all, "backward", "this project")
_add("rank_mean_gradient", ensemble_of_gradients, "backward", "this project")
_add("random", weights.random, "weights", "arXiv 1801.10447")
