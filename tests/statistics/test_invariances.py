"""What a metric must not feel: channels that nothing reads, scales that the network undoes."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from selector.network.groups import Group
from selector.network.layers import input_dimension, layer_width, output_dimension
from selector.saliency.checks import Scene
from selector.saliency.registry import METRICS
from selector.saliency.scoring import lowest, score_signals
from selector.statistics.collect import measure_signals
from tests.networks import data, small
from tests.reference import fpgm, singles, whc
from tests.scored import close, groups_of, scores_of

CHANGED = {
    "l1",
    "l2",
    "consumer_norm",
    "group_l2",
    "batchnorm_scale",
    "fpgm",
    "whc",
    "lamp",
    "mean_activation",
    "activation_rms",
    "activation_spread",
    "chip",
    "mean_gradient",
    "grasp",
}
"""Metrics that function-preserving rescaling changes."""
ENSEMBLES = {"rank_mean", "rank_mean_gradient"}
UNCHANGED = set(METRICS) - CHANGED - ENSEMBLES - {"random"}
GATED = [
    name
    for name, metric in METRICS.items()
    if metric.needs & {"backward", "second_order"}
    and name not in ENSEMBLES | {"second_taylor_gate"}
]


@pytest.mark.parametrize(
    "style",
    [
        "plain",
        "residual",
        "two_consumers",
        "flatten",
        "depthwise",
        "concat",
        "grouped",
        "grouped_transposed",
    ],
)
def test_a_channel_that_nothing_reads_scores_lowest(style: str) -> None:
    model, batches = small(style, 5, act="silu"), data()
    group = groups_of(model, batches[0][0])["stem"]
    for part in group.slices:
        if part.side == "in":
            own = [i for i, c in zip(part.indices, part.channels, strict=True) if c == 2]
            weight = (layer := model.get_submodule(part.layer)).weight.data
            size = weight.shape[dimension := input_dimension(layer)]
            weight.index_fill_(dimension, torch.tensor(own) % size, 0)
    scores = scores_of(model, batches, [*GATED, "rank_mean_gradient", "consumer_norm", "wanda"])
    for metric, values in scores["stem"].items():
        assert lowest(values, 1) == (2,), metric
        assert metric == "rank_mean_gradient" or values[2] == 0, metric


def test_a_channel_that_is_always_zero_scores_lowest_where_activations_count() -> None:
    model, batches = small("two_consumers", 5, norm=True), data()
    model.norm.weight.data[3], model.norm.bias.data[3] = 0.0, -1.0
    of_weights = {"l1", "l2", "consumer_norm", "group_l2", "fpgm", "whc", "lamp", "random"}
    found = scores_of(model, batches)["stem"]
    # Where the activation is zero a gradient need not be, nor the flow of absolute weights.
    for metric in set(METRICS) - of_weights - ENSEMBLES - {"mean_gradient", "synflow"}:
        assert abs(found[metric][3]) < 1e-12, metric
        if metric not in ("grasp", "second_taylor_gate"):
            assert lowest(found[metric], 1) == (3,), metric


def rescaled(model: nn.Module, group: Group, factors: Tensor) -> nn.Module:
    """The same function with every channel of a group times a factor, up to its consumers."""
    copied = copy.deepcopy(model)
    for part in group.slices:
        layer = copied.get_submodule(part.layer)
        if isinstance(layer, nn.PReLU):
            continue
        # Not every input or output of a layer need belong to the group.
        factor = torch.ones(layer_width(layer, part.side), dtype=torch.float64)
        factor[list(part.indices)] = factors[list(part.channels)]
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean *= factor
            layer.running_var.copy_((layer.running_var + layer.eps) * factor**2 - layer.eps)
            layer.weight.data *= factor
            layer.bias.data *= factor
            continue
        dimension = input_dimension(layer) if part.side == "in" else output_dimension(layer)
        factor = 1 / factor if part.side == "in" else factor
        shape = [-1 if d == dimension else 1 for d in range(layer.weight.ndim)]
        layer.weight.data *= factor.view(shape)
        if part.side == "out" and layer.bias is not None:
            layer.bias.data *= factor
    return copied


@settings(deadline=None, max_examples=12)
@given(
    style=st.sampled_from(
        ["plain", "residual", "two_consumers", "flatten", "concat", "transposed"]
    ),
    act=st.sampled_from(["relu", "leaky_relu", "prelu"]),
    norm=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_rescaling_changes_what_the_documentation_says(
    style: str, act: str, norm: bool, seed: int
) -> None:
    model, batches = small(style, 4, seed, act=act, norm=norm), data(4, 2)
    generator = torch.Generator().manual_seed(seed)
    before = scores_of(model, batches)
    groups = groups_of(model, batches[0][0])
    other = model
    for name, group in groups.items():
        factors = 0.5 + 1.5 * torch.rand(group.channels, generator=generator, dtype=torch.float64)
        alone = scores_of(rescaled(model, group, factors), batches, groups=[name])[name]
        for metric in CHANGED & alone.keys():
            changed = not close(alone[metric], before[name][metric], 1e-3)
            # Zero is zero on any scale.
            assert changed or not before[name][metric].any(), (name, metric)
        # Consumers that write what they read write on another scale, which wanda feels.
        itself = set(group.producers) & set(group.consumers)
        for metric in UNCHANGED - ({"wanda"} if itself else set()):
            assert close(alone[metric], before[name][metric], 1e-6), (name, metric)
        other = rescaled(other, group, factors)
    images = batches[0][0]
    assert torch.allclose(other(images), model(images), atol=1e-9)
    for name, found in scores_of(other, batches).items():
        for metric in UNCHANGED - {"wanda"}:
            assert close(found[metric], before[name][metric], 1e-6), (name, metric)


def test_wanda_feels_the_scales_of_the_channels_that_its_consumers_write() -> None:
    model, batches = small("plain", 4), data(4)
    group = groups_of(model, batches[0][0])["next"]
    factors = torch.linspace(0.5, 2, group.channels, dtype=torch.float64)
    before, after = (
        scores_of(m, batches, ["wanda"])["stem"]["wanda"]
        for m in (model, rescaled(model, group, factors))
    )
    assert not close(after, before, 1e-2)


def test_rescaling_is_unfelt_where_every_metric_says_so() -> None:
    """The documentation of a file names the exceptions; a metric in neither list fails here."""
    named = {
        "taylor",
        "taylor_elementwise",
        "taylor_2016",
        "taylor_gate",
        "fisher",
        "group_fisher",
        "energy_gradient",
        "weight_taylor_squared",
        "weight_taylor_joint",
        "snip",
        "jacobian",
        "apoz",
        "wanda",
        "hrank",
        "synflow",
        "obd",
        "gauss_newton",
        "second_taylor_gate",
    }
    assert named == UNCHANGED


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_distances_of_identical_and_of_zero_filters(scale: float) -> None:
    """From one matrix product, where the distance of equal filters is a difference of squares."""
    model, batches = small("plain", 6), data(4)
    weight = model.stem.weight.data
    weight *= scale
    weight[1] = weight[0]
    weight[3] = -weight[2]
    weight[4:] = 0
    groups = groups_of(model, batches[0][0])
    scene = Scene(model, groups["stem"], singles(batches))
    found = scores_of(model, batches, ["fpgm", "whc", "lamp"], groups=["stem"])["stem"]
    assert close(found["fpgm"], torch.tensor(fpgm(scene)).double(), 1e-6)
    assert close(found["whc"], torch.tensor(whc(scene)).double(), 1e-6)
    assert found["fpgm"][0] == pytest.approx(float(found["fpgm"][1]))
    assert found["fpgm"][4] == found["fpgm"][5]
    assert not found["whc"][4:].any()
    assert not found["lamp"][4:].any()


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_filters_that_are_all_alike_are_all_replaceable(value: float) -> None:
    model, batches = small("plain", 4), data(4)
    model.stem.weight.data.fill_(value)
    groups = {"stem": groups_of(model, batches[0][0])["stem"]}
    names = [name for name, metric in METRICS.items() if metric.needs == {"weights"}]
    found = score_signals(measure_signals(model, batches, groups, needs={"weights"}), names)
    for name in ("fpgm", "whc"):
        assert (found["stem"][name].abs() <= 1e-6 * value).all()
    assert all(values.isfinite().all() for values in found["stem"].values())


def test_two_filters_are_equally_far_from_each_other() -> None:
    """To the last bit, or ensembles would rank what rounding says."""
    for seed in range(30):
        found = scores_of(small("plain", 2, seed), data(2), ["fpgm", "whc"], groups=["stem"])
        for values in found["stem"].values():
            assert values[0] == values[1]
