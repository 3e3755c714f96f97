"""The networks, states and candidates that ways of measuring a removal are judged on.

Third-party networks that may be learnt from, with and without BatchNorm, as they are and after
pruning and repair. Scores, predictions and repairs see one set of training images, the ways of
measuring another; what is true is read on test images that nobody was trained on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from torch import nn

from selector.data.forward import probe_inputs
from selector.network.groups import Group
from selector.network.surgery import Cut
from selector.network.tracing import find_groups
from selector.planning.choose import choose
from selector.pruning.prune import prune
from selector.saliency.proposals.registry import PROPOSALS
from selector.saliency.scoring import lowest, score_signals
from selector.statistics.collect import asked_with, measure_sources
from selector.statistics.gradient_source import Gradients
from selector.statistics.statistic import Need
from selector.typing import Channels
from training.reporting.accuracy import Images, laid_out
from training.zoo.shared_third_party import load_third_party, third_party_batches

NETWORKS = (
    "chengyuhsieh_lenet_mnist",
    "douzaikongcheng_vgg3_cifar10",
    "bilalxai_plain4_gtsrb",
    "bcom5_mobilenetv1x025_cifar10",
    "ethsri_colt_mnist",
    "kuanhenglin_plainbnafter_cifar10",
    "layerfolding_resnet20prelu_cifar10",
)
RANKINGS = (
    "random",
    "l1",
    "fpgm",
    "taylor",
    "fisher",
    "wanda",
    "mean_activation",
    "activation_spread",
    "rank_mean",
)
SETS = ("joint_half", "reconstruction", "reconstruction_fisher")
CALIBRATION, MEASURING, TEST = 256, 512, 2000
"""Images: for scores and repair, for measuring a removal, for what is true."""
BATCH = 128
PRUNED = 0.6
"""Share of the MACs of the second state."""


@dataclass(frozen=True, eq=False)
class State:
    """A network as it is, or after pruning and repair."""

    original: nn.Module
    model: nn.Module
    cuts: tuple[Cut, ...]
    """From the original to the model."""
    groups: Mapping[str, Group]


@cache
def original_of(name: str) -> nn.Module:
    """The trained network, which nobody may change."""
    return load_third_party(name)


@cache
def calibration_of(name: str) -> Images:
    """Images for scores, predictions and repair."""
    return list(third_party_batches(name, "train", limit=CALIBRATION, batch_size=BATCH))


@cache
def measuring_of(name: str) -> Images:
    """Images for measuring a removal."""
    batches = third_party_batches(
        name, "train", limit=MEASURING, offset=CALIBRATION, batch_size=BATCH
    )
    return list(batches)


@cache
def tests_of(name: str) -> Images:
    """Images for what is true."""
    return laid_out(third_party_batches(name, "test", limit=TEST, batch_size=250))


def state_of(name: str, pruned: bool) -> State:
    """A network in one of the two states."""
    model, images = original_of(name), calibration_of(name)
    small, cuts = model, tuple[Cut, ...]()
    if pruned:
        found = prune(model, images, criterion="reconstruction", keep_macs=PRUNED, rounds=1)
        small, cuts = found.model, found.cuts
    groups = find_groups(small, probe_inputs(small, images)).required()
    return State(model, small, cuts, groups)


class Proposer:
    """What every arm would remove from the groups of a network."""

    def __init__(self, model: nn.Module, images: Images, groups: Mapping[str, Group]) -> None:
        needs = {need for name in SETS for need in PROPOSALS[name].needs} | {"backward"}
        of_each: dict[Gradients, frozenset[Need]] = {
            "labels": frozenset(needs),
            "softened": frozenset(needs - {"pairs"}),
        }
        self._signals = measure_sources(model, images, groups, asked_with(of_each, 0))
        rankings = [name for name in RANKINGS if name not in PROPOSALS]
        self._scores = score_signals(self._signals["labels"], rankings)

    def sets(self, group: Group, count: int) -> dict[str, Channels]:
        """Arm -> the channels that it would remove."""
        scores = self._scores[group.name]
        found = {name: lowest(scores[name], count) for name in RANKINGS if name in scores}
        for name in (*SETS, *(ranking for ranking in RANKINGS if ranking in PROPOSALS)):
            proposal = PROPOSALS[name]
            signals = self._signals[proposal.gradients][group.name]
            found[name] = proposal.checked(group.name, signals, count)
        return found


def even_counts(name: str, keep_macs: float) -> dict[str, int]:
    """How many channels every group loses where all lose the same share."""
    plan = choose(original_of(name), calibration_of(name), criterion="l1", keep_macs=keep_macs)
    return {choice.group: len(choice.remove) for choice in plan.choices}


def spread(names: Sequence[str], count: int) -> list[str]:
    """Some of these, from the first to the last."""
    if len(names) <= count:
        return list(names)
    return [names[round(k * (len(names) - 1) / (count - 1))] for k in range(count)]
