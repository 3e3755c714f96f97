"""Candidates for pruning from two sources, and which of them the law lets pass.

Torch-Pruning's graph is the source where a network is made of layers, additions and concatenations
alone. Where channels are taken apart, or statistics are taken over them, and for roots that the
graph refuses, it is our own index mapping.
"""

import logging
from collections import ChainMap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from torch import nn

from selector.errors import SelectorError
from selector.network.channels.mapping import EQUAL_WIDTHS, ChannelMapping, Reading
from selector.network.coupling.dependency_graph import candidate_groups
from selector.network.coupling.idle import idle_layers, in_training, with_idle_layers
from selector.network.coupling.law import LawCheck
from selector.network.coupling.ties import torn_ties
from selector.network.groups import Group
from selector.network.judgement import COUNTED, broken_laws
from selector.typing import Side

LOG = logging.getLogger("selector")

Place = tuple[str, Side, int]


class Discovery:
    """Candidates of a network."""

    def __init__(self, model: nn.Module, inputs: object) -> None:
        """Trace a network, which is in evaluation mode and left as found.

        Raises:
            SelectorError: Neither source can follow the network.
        """
        self._model, self._inputs = model, inputs
        self._training = in_training(model, inputs, idle_layers(model, inputs), _in_training)
        mapping = _mapping(model, inputs)
        graph: list[Group] = []
        refused: dict[str, str] = {}
        if mapping is None or mapping.plain:
            try:
                graph, refused = candidate_groups(model, inputs)
            except SelectorError:
                if mapping is None:
                    raise
        self._graph, reasons = self._checked(graph)
        self._refused = refused | reasons
        readings = [] if mapping is None else mapping.readings()
        self._readings = [self._usable(reading) for reading in readings]
        self._mapping = mapping

    def judged(self, judge: LawCheck) -> tuple[list[Group], dict[str, str]]:
        """The groups that keep the law, and root -> reason for the others.

        Args:
            judge: A judge of the same network on the same inputs.
        """
        found, refused = _passing(judge, self._graph)
        refused = self._refused | refused
        for reading in self._readings:
            more, reasons = _read(judge, reading, found)
            found += more
            refused = reasons | refused if reading is not self._readings[0] else refused | reasons
        for reading in self._tied([name for name, why in refused.items() if COUNTED in why]):
            found += _read(judge, reading, found)[0]
        places = {name for group in found for name in group.producers}
        refused = {name: why for name, why in refused.items() if name not in places}
        order = {name: number for number, (name, _) in enumerate(self._model.named_modules())}
        return sorted(found, key=lambda group: order[group.name]), refused

    def known(self, before: Sequence[Group], is_known: Callable[[Group], bool]) -> list[Group]:
        """The candidates that are known from before, without asking the law again.

        Args:
            before: All groups from before.
            is_known: Whether a group is one of them.
        """
        found: dict[str, Group] = {}
        tied = [group.sides for group in before if group.reading.startswith(EQUAL_WIDTHS)]
        parts = [
            group.name
            for reading in self._readings[:1]
            for group in reading.groups.values()
            if any(sides >= group.sides for sides in tied)
        ]
        mine = [
            group
            for reading in [*self._readings, *self._tied(parts)]
            for group in [*reading.groups.values(), *reading.numbered.values()]
        ]
        for group in [*self._graph, *mine]:
            if group.name not in found and is_known(group):
                found[group.name] = group
        return list(found.values())

    def _tied(self, names: Collection[str]) -> list[Reading]:
        """The reading that is left for groups whose width code takes for that of others."""
        if self._mapping is None or not names:
            return []
        return [self._usable(reading) for reading in self._mapping.tied(names)]

    def _usable(self, reading: Reading) -> Reading:
        """A reading without the groups that are refused before the law is asked."""
        groups, refused = self._checked(list(reading.groups.values()))
        left = {group.name: group for group in groups}
        numbered = {name: group for name, group in reading.numbered.items() if name in left}
        return Reading(left, {**reading.refused, **refused}, numbered)

    def _checked(self, groups: Sequence[Group]) -> tuple[list[Group], dict[str, str]]:
        """Groups with their layers that run in training mode only, and those refused for them."""
        if not groups:
            return [], {}
        found, refused = with_idle_layers(self._model, self._inputs, groups, self._training)
        refused = refused | torn_ties(self._model, found)
        return [group for group in found if group.name not in refused], refused


def _read(
    judge: LawCheck, reading: Reading, accepted: Sequence[Group]
) -> tuple[list[Group], dict[str, str]]:
    """Groups of one reading, with the numbers that modules keep where those have to follow."""
    taken = {place for group in accepted for place in _places(group)}
    names = {group.name for group in accepted}
    fresh = {
        name: group
        for name, group in reading.groups.items()
        if name not in names and taken.isdisjoint(_places(group))
    }
    numbered = reading.numbered
    first = [numbered.get(n, g) if g.span > 1 else g for n, g in fresh.items()]
    found, refused = _passing(judge, first)
    again = [n for n in refused if n in numbered and n in fresh]
    others = [numbered[n] if fresh[n].span == 1 else fresh[n] for n in again]
    more, reasons = _passing(judge, others)
    passed = {group.name for group in more}
    refused = {name: why for name, why in refused.items() if name not in passed}
    return found + more, {**reading.refused, **reasons, **refused}


def _passing(judge: LawCheck, groups: Sequence[Group]) -> tuple[list[Group], dict[str, str]]:
    refused = broken_laws(judge, groups)
    return [group for group in groups if group.name not in refused], refused


def _mapping(model: nn.Module, inputs: object) -> ChannelMapping | None:
    """The own mapping, or None of a network that does not run operator by operator."""
    try:
        return ChannelMapping(model, inputs)
    except Exception:  # Code that PyTorch runs without showing its operators.
        LOG.debug("channels are followed by Torch-Pruning's graph alone", exc_info=True)
        return None


def _in_training(
    model: nn.Module, inputs: object
) -> tuple[list[Mapping[str, Group]], Mapping[str, str]]:
    """Groups of every reading in training mode, and reasons for the others.

    The law is not asked there, so the graph, which knows no softmax, is the source only where there
    is no other.
    """
    mapping = _mapping(model, inputs)
    if mapping is None:
        graph, refused = candidate_groups(model, inputs, training=True)
        return [{group.name: group for group in graph}], refused
    readings = mapping.readings()
    found = [groups for one in readings for groups in (one.groups, one.numbered)]
    return found, dict(ChainMap(*(dict(one.refused) for one in readings)))


def _places(group: Group) -> Iterator[Place]:
    for part in group.sided:
        for index in part.indices:
            yield part.layer, part.side, index
