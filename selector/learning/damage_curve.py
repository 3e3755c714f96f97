"""Predicted damage of a group by the number of channels that go, from a few predictions."""

from collections.abc import Mapping, Sequence
from itertools import islice

from selector.learning.selector import SaliencySelector
from selector.records.decision import Decision, GroupView

LADDER = (0.03, 0.06, 0.12, 0.25, 0.5, 0.75)
"""Shares of a group's channels at which its damage is predicted; then all that may go."""

Curve = Mapping[int, float]
"""Channels removed from a group -> predicted loss change in nats; never less a channel; 0 -> 0."""


def damage_curve(selector: SaliencySelector, view: GroupView, options: Sequence[int]) -> Curve:
    """Predicted loss change of a group at several of its allowed steps, by its trusted metrics.

    Args:
        selector: Asked for predictions.
        view: The group as the selector sees it.
        options: Numbers of channels that may go, ascending, beginning with 0.
    """
    return damage_curves(selector, {"": view}, {"": options})[""]


def damage_curves(
    selector: SaliencySelector,
    views: Mapping[str, GroupView],
    options: Mapping[str, Sequence[int]],
) -> dict[str, Curve]:
    """`damage_curve` of many groups, predicted together.

    No step is cheaper per channel than a smaller one: the channels that a metric would miss least
    go first, and where a larger step is predicted to be a bargain, the prediction is wrong.

    Args:
        selector: Asked for predictions.
        views: Group -> the group as the selector sees it.
        options: Group -> numbers of channels that may go, ascending, beginning with 0.
    """
    counts = {name: rungs(options[name], view.channels) for name, view in views.items()}
    asked = [Decision(views[name], n) for name, some in counts.items() for n in some]
    predictions = iter(selector.predict_many(asked))
    curves: dict[str, Curve] = {}
    for name, some in counts.items():
        nats = [one.loss_change_nats[one.trusted] for one in islice(predictions, len(some))]
        curves[name] = curve_of(some, nats)
    return curves


def curve_of(counts: Sequence[int], nats: Sequence[float]) -> Curve:
    """A curve on which no step is cheaper per channel than a smaller one.

    Args:
        counts: Channels removed, ascending.
        nats: The damage of each.
    """
    curve, highest = {0: 0.0}, 0.0
    for count, damage in zip(counts, nats, strict=True):
        highest = max(highest, damage / count)
        curve[count] = highest * count
    return curve


def rungs(options: Sequence[int], channels: int) -> list[int]:
    """The allowed steps that are nearest to those of the ladder, and the largest.

    Args:
        options: Numbers of channels that may go, ascending, beginning with 0.
        channels: Of the group.
    """
    steps = options[1:]
    nearest = {min(steps, key=lambda n: abs(n - s * channels)) for s in LADDER if steps}
    return sorted(nearest | {*steps[-1:]})
