"""Grouped convolutions: equal offsets of all their groups go together, exactly, or not at all."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from selector.errors import SelectorError
from selector.network.checkpoint import load_pruned, save_pruned
from selector.network.costs import count_costs
from selector.network.masking import masked
from selector.network.surgery import Cut, apply_cuts, cuts_of
from selector.network.tracing import Groups, find_groups, retrace_groups
from selector.planning.limits import Widths
from selector.pruning.apply import apply_plan
from selector.pruning.prune import prune
from selector.recording.record import record
from tests.laws import check_costs, check_law, check_structure, some_channels
from tests.networks import data, randomise, state_of

IMAGES = data(4, 4)[0][0]


class Network(nn.Module):
    """A stem of 12 filters, whatever a test puts behind it, and a head over 12 channels."""

    def __init__(self, body: Callable[["Network", Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.head = nn.Linear(12, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.body(self, torch.relu(self.stem(images)))
        return self.head(torch.relu(x).mean((2, 3)))


def traced(
    body: Callable[[nn.Module, Tensor], Tensor], **layers: nn.Module
) -> tuple[nn.Module, Groups]:
    model = randomise(Network(body, **layers).double()).eval()
    groups = find_groups(model, IMAGES)
    check_structure(model, groups)
    return model, groups


def sizes(groups: Groups) -> dict[str, tuple[int, int]]:
    """Removable channels, and the root's filters in each."""
    return {name: (group.channels, group.span) for name, group in groups.prunable.items()}


def check_everything(model: nn.Module, groups: Groups, images: Tensor = IMAGES) -> None:
    generator = torch.Generator().manual_seed(0)
    removals = [(group, some_channels(group, generator)) for group in groups.prunable.values()]
    for removal in removals:
        check_law(model, images, [removal], 1e-5)
    check_law(model, images, removals, 1e-5)
    check_costs(model, images)


KINDS = [nn.Conv2d, nn.ConvTranspose2d]
Kind = type[nn.Conv2d] | type[nn.ConvTranspose2d]


def resnext_block(outputs: int = 16, kind: Kind = nn.Conv2d) -> tuple[nn.Module, Groups]:
    def body(net: nn.Module, x: Tensor) -> Tensor:
        y = torch.relu(net.norm(net.reduce(x)))
        return x + net.expand(torch.relu(net.grouped(y)))

    return traced(
        body,
        reduce=nn.Conv2d(12, 16, 1, bias=False),
        norm=nn.BatchNorm2d(16),
        grouped=kind(16, outputs, 3, padding=1, groups=4),
        expand=nn.Conv2d(outputs, 12, 1),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_resnext_block_is_pruned_exactly(kind: Kind) -> None:
    model, groups = resnext_block(kind=kind)
    assert sizes(groups) == {"stem": (12, 1), "reduce": (4, 4), "grouped": (4, 4)}
    assert list(groups.refused) == ["head"]
    check_everything(model, groups)


def test_a_channel_is_the_same_offset_in_every_group() -> None:
    model, groups = resnext_block()
    inputs, outputs = groups.prunable["reduce"], groups.prunable["grouped"]
    with masked(model, inputs, [1]):
        assert not model.grouped.weight[:, 1].any()
        assert model.grouped.weight[:, [0, 2, 3]].all()
    assert Cut("grouped", "in", (1, 5, 9, 13)) in cuts_of([(inputs, [1])])
    smaller = copy.deepcopy(model)
    apply_cuts(smaller, cuts_of([(outputs, [0, 2])]))
    kept = [1, 3, 5, 7, 9, 11, 13, 15]
    assert torch.equal(smaller.grouped.weight, model.grouped.weight[kept])
    assert torch.equal(smaller.expand.weight, model.expand.weight[:, kept])


def test_the_groups_of_a_transposed_convolution_share_its_outputs() -> None:
    model, groups = resnext_block(kind=nn.ConvTranspose2d)
    inputs, outputs = groups.prunable["reduce"], groups.prunable["grouped"]
    with masked(model, inputs, [1]):
        assert model.grouped.weight.flatten(1).any(1).tolist() == [i % 4 != 1 for i in range(16)]
    smaller = copy.deepcopy(model)
    apply_cuts(smaller, cuts_of([(outputs, [0, 2])]))
    kept = [1, 3, 5, 7, 9, 11, 13, 15]
    assert torch.equal(smaller.grouped.weight, model.grouped.weight[:, [1, 3]])
    assert torch.equal(smaller.grouped.bias, model.grouped.bias[kept])
    assert torch.equal(smaller.expand.weight, model.expand.weight[:, kept])


def test_inputs_and_outputs_of_one_grouped_convolution_in_a_residual_stream() -> None:
    model, groups = traced(
        lambda net, x: x + net.grouped(x), grouped=nn.Conv2d(12, 12, 3, padding=1, groups=3)
    )
    assert groups.prunable["stem"].producers == ("stem", "grouped")
    assert sizes(groups) == {"stem": (4, 3)}
    check_everything(model, groups)


def two_and(groups: int) -> tuple[nn.Module, Groups]:
    return traced(
        lambda net, x: net.twos(x) + net.others(x) + net.plain(x),
        twos=nn.Conv2d(12, 12, 3, padding=1, groups=2),
        others=nn.Conv2d(12, 12, 1, groups=groups),
        plain=nn.Conv2d(12, 12, 1),
    )


@pytest.mark.parametrize(("groups", "multiple"), [(2, 2), (4, 4), (3, 6), (6, 6)])
def test_group_numbers_meet_in_their_least_common_multiple(groups: int, multiple: int) -> None:
    model, found = two_and(groups)
    assert sizes(found) == dict.fromkeys(("stem", "twos"), (12 // multiple, multiple))
    assert found.prunable["twos"].producers == ("twos", "others", "plain")
    for group in found.prunable.values():
        (root,) = [p for p in group.slices if (p.layer, p.side) == (group.name, "out")]
        assert all(
            channel == index % group.channels
            for index, channel in zip(root.indices, root.channels, strict=True)
        )
    check_everything(model, found)


def test_groups_of_one_channel_can_only_go_all_together() -> None:
    _, found = traced(
        lambda net, x: net.project(torch.relu(net.threes(net.fours(x)))),
        fours=nn.Conv2d(12, 12, 1, groups=4),
        threes=nn.Conv2d(12, 12, 1, groups=3),
        project=nn.Conv2d(12, 12, 1),
    )
    # Between the two, 12 is the least common multiple.
    assert "layer 'fours' has 4 groups: these channels could only" in found.refused["fours"]
    assert sizes(found) == {"stem": (3, 4), "threes": (4, 3), "project": (12, 1)}


@pytest.mark.parametrize(
    ("inputs", "outputs", "prunable", "refused"),
    [(12, 24, ("grouped", 2, 12), "stem"), (12, 6, ("stem", 2, 6), "grouped")],
)
def test_one_channel_in_each_group_on_one_side(
    inputs: int, outputs: int, prunable: tuple[str, int, int], refused: str
) -> None:
    """Torch-Pruning takes the second for a depthwise convolution; neither is one."""
    model, groups = traced(
        lambda net, x: net.project(torch.relu(net.grouped(x))),
        grouped=nn.Conv2d(inputs, outputs, 3, padding=1, groups=min(inputs, outputs)),
        project=nn.Conv2d(outputs, 12, 1),
    )
    name, channels, span = prunable
    assert sizes(groups) == {name: (channels, span), "project": (12, 1)}
    assert "'grouped' has" in groups.refused[refused]
    assert "could only go all together" in groups.refused[refused]
    check_everything(model, groups)


def read_by_two_groups(view: Callable[[nn.Module, Tensor], Tensor], inputs: int) -> Groups:
    model, groups = traced(
        lambda net, x: net.project(torch.relu(net.grouped(view(net, x)))),
        other=nn.Conv2d(12, 12, 1),
        grouped=nn.Conv2d(inputs, 8, 1, groups=2),
        project=nn.Conv2d(8, 12, 1),
    )
    assert sizes(groups)["grouped"] == (4, 2)
    check_everything(model, groups)
    return groups


def test_a_concatenation_that_no_group_sees_whole_goes_together() -> None:
    groups = read_by_two_groups(lambda net, x: torch.cat([x, net.other(x)], 1), 24)
    assert groups.prunable["stem"].producers == ("stem", "other")


def test_a_concatenation_with_itself_needs_no_tying() -> None:
    groups = read_by_two_groups(lambda _, x: torch.cat([x, x], 1), 24)
    assert sizes(groups)["stem"] == (12, 1)


@pytest.mark.parametrize("groups", [1, 2])
def test_of_halves_by_numbers_the_first_stays(groups: int) -> None:
    model, found = traced(
        lambda net, x: net.grouped(x[:, :6]) + net.other(x[:, 6:]),
        grouped=nn.Conv2d(6, 12, 1, groups=2),
        other=nn.Conv2d(6, 12, 1, groups=groups),
    )
    root = found.prunable["stem"].slices[0]
    assert root.indices == (6, 7, 8, 9, 10, 11)
    check_everything(model, found)


@pytest.mark.parametrize("depthwise", [True, False])
def test_a_shuffle_between_grouped_convolutions(depthwise: bool) -> None:
    def shuffled(x: Tensor) -> Tensor:
        images, channels, *size = x.shape
        return x.view(images, 2, channels // 2, *size).transpose(1, 2).reshape(x.shape)

    def body(net: nn.Module, x: Tensor) -> Tensor:
        y = net.between(shuffled(torch.relu(net.norm(net.first(x)))))
        return x + net.second(y)

    model, groups = traced(
        body,
        first=nn.Conv2d(12, 8, 1, groups=2),
        norm=nn.BatchNorm2d(8),
        between=nn.Conv2d(8, 8, 3, padding=1, groups=8) if depthwise else nn.Identity(),
        second=nn.Conv2d(8, 12, 1, groups=2),
    )
    assert sizes(groups) == {"stem": (6, 2), "first": (2, 4)}
    check_everything(model, groups)


@pytest.mark.parametrize("side", ["in", "out"])
def test_a_cut_that_leaves_unlike_groups_changes_nothing(side: str) -> None:
    model, _ = resnext_block()
    before = state_of(model)
    with pytest.raises(SelectorError, match="layer 'grouped' would not lose the same"):
        apply_cuts(model, [Cut("stem", "out", (0,)), Cut("grouped", side, (0, 1))])  # type: ignore[arg-type]
    assert state_of(model) == before


@pytest.mark.parametrize("kind", KINDS)
def test_one_output_in_each_group_leaves_the_inputs_prunable(kind: Kind) -> None:
    model, groups = resnext_block(kind=kind)
    apply_cuts(model, cuts_of([(groups.prunable["grouped"], [0, 1, 3])]))
    # As many outputs as groups now, which is not depthwise: there are four inputs in each.
    groups = retrace_groups(model, IMAGES, groups)
    assert sizes(groups) == {"stem": (12, 1), "reduce": (4, 4)}
    check_law(model, IMAGES, [(groups.prunable["reduce"], [0, 3])], 1e-5)
    apply_cuts(model, cuts_of([(groups.prunable["reduce"], [0, 1, 2])]))
    # Depthwise now; its channels are no longer those that the law was asked about.
    groups = retrace_groups(model, IMAGES, groups)
    assert sizes(groups) == {"stem": (12, 1)}
    check_law(model, IMAGES, [(groups.prunable["stem"], [1])], 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_pruned_in_rounds_to_the_floor_it_is_the_plan_carried_out_at_once(kind: Kind) -> None:
    model, _ = resnext_block(kind=kind)
    batches = data(12, 4)
    target = {"criterion": "l1", "rounds": 3, "recalibrate": False, "ratio": 0.8}
    result = prune(model, batches, **target)  # type: ignore[arg-type]
    assert {c.group: (c.channels, len(c.remove)) for c in result.plan.choices} == {
        "stem": (12, 10),
        "reduce": (4, 3),
        "grouped": (4, 3),
    }
    grouped = result.model.grouped
    assert (grouped.groups, grouped.in_channels, grouped.out_channels) == (4, 4, 4)
    at_once = apply_plan(model, result.plan, batches).state_dict()
    for name, tensor in result.model.state_dict().items():
        assert torch.equal(at_once[name], tensor)
    assert count_costs(result.model, IMAGES).total("macs") == result.plan.macs_after


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [0.7, 0.2])
def test_a_grouped_network_comes_back_bit_for_bit(keep: float, kind: Kind, tmp_path: Path) -> None:
    model, _ = resnext_block(outputs=24, kind=kind)
    smaller = prune(model, data(12, 4), criterion="l2", rounds=2, keep_params=keep).model.eval()
    assert smaller.grouped.weight.shape != model.grouped.weight.shape
    save_pruned(smaller, tmp_path / "small.safetensors")
    loaded = load_pruned(
        lambda: resnext_block(outputs=24, kind=kind)[0], tmp_path / "small.safetensors"
    )
    assert torch.equal(loaded(IMAGES), smaller(IMAGES))
    assert loaded.grouped.in_channels == smaller.grouped.in_channels


@pytest.mark.parametrize(
    ("rows", "culprit"),
    [(28, "'grouped' is saved with 28 'out' channels"), (22, "layer 'grouped' has 20 outputs")],
)
def test_a_file_that_does_not_fit_a_grouped_convolution_is_refused(
    rows: int, culprit: str, tmp_path: Path
) -> None:
    tensors = resnext_block(outputs=24)[0].state_dict()
    for name in ("grouped.weight", "grouped.bias"):
        tensors[name] = torch.zeros(rows, *tensors[name].shape[1:])
    save_file(tensors, tmp_path / "wrong.safetensors")
    with pytest.raises(SelectorError, match=culprit):
        load_pruned(lambda: resnext_block(outputs=24)[0], tmp_path / "wrong.safetensors")


def test_widths_that_are_left_are_counted_in_filters() -> None:
    _, groups = resnext_block()
    widths = Widths.of(groups.prunable, max_ratio=0.9, round_to=8)
    # Four filters a channel: an even number of channels is a multiple of eight filters.
    assert widths.options(groups.prunable["grouped"]) == [0, 2]
    assert Widths.of(groups.prunable, 0.9, 4).options(groups.prunable["grouped"]) == [0, 1, 2, 3]
    assert Widths.of(groups.prunable, 0.9, 4).options(groups.prunable["stem"]) == [0, 4, 8]


def test_the_facts_of_a_group_count_filters_where_they_should() -> None:
    records = record(resnext_block()[0], data(6, 2), network="resnext", contexts=0)
    (facts,) = [row.facts for row in records.groups if row.group == "grouped"]
    assert facts.relative_width == 1.0
    assert facts.log_channels == 2.0
    # Four filters over four inputs each, 3 x 3.
    assert facts.log_fan_in == pytest.approx(math.log2(4 * 4 * 9))
    # Four maps of 8 x 8 go with a channel.
    assert facts.log_positions == 8.0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "through"), [("regnet_y_400mf", 32), ("resnext50_32x4d", 32)])
def test_networks_of_torchvision_with_grouped_convolutions(name: str, through: int) -> None:
    model = randomise(getattr(torchvision.models, name)(weights=None).double()).eval()
    images = data(2, 2, shape=(3, 64, 64))[0][0]
    groups = find_groups(model, images)
    check_structure(model, groups)
    assert list(groups.refused) == ["fc"]
    tied = [group for group in groups.prunable.values() if group.span > 1]
    assert len(tied) == through
    generator = torch.Generator().manual_seed(0)
    removals = [(group, some_channels(group, generator)) for group in groups.prunable.values()]
    for removal in removals:
        if removal[0] in tied[::4]:
            check_law(model, images, [removal], 1e-5)
    check_law(model, images, removals, 1e-5)
    smaller = copy.deepcopy(model)
    apply_cuts(smaller, cuts_of(removals))
    foretold = {group: len(channels) for group, channels in removals}
    now = count_costs(smaller, images)
    for measure in ("macs", "parameters", "weights"):
        assert now.total(measure) == pytest.approx(groups.costs.total(measure, foretold), rel=1e-9)


class SplitShuffle(nn.Module):
    """A shuffle by reshaping, behind a split: the graph follows positions that are not there."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 2 * width, 3, padding=1)
        self.branch = nn.Conv2d(width, width, 1)
        self.after = nn.Conv2d(2 * width, 4, 1)
        self.head = nn.Linear(4, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        left, right = torch.relu(self.stem(images)).chunk(2, 1)
        maps = torch.cat([left, torch.relu(self.branch(right))], 1)
        maps = maps.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        return self.head(torch.relu(self.after(maps)).mean((2, 3)))


def test_what_the_graph_follows_wrongly_is_prunable() -> None:
    model = randomise(SplitShuffle().double()).eval()
    found = find_groups(model, data()[0][0])
    assert sizes(found) == {"stem": (6, 2), "after": (4, 1)}
    check_everything(model, found)
