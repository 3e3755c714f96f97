"""What repair promises: laws, a slow twin on explicit equations, and bad input."""

import copy
import logging
from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest
import torch
import torch_pruning as tp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize

from selector.errors import SelectorError
from selector.network.surgery import Cut, apply_cuts, cuts_of
from selector.network.tracing import find_groups
from selector.repair.correspondence import kept_after_history
from selector.repair.few_equations import FewEquations
from selector.repair.least_squares import NormalEquations
from selector.repair.patches import set_weight_matrices, weight_matrices
from selector.repair.reconstruction import Repair, reconstruct, reconstruct_in_place
from selector.repair.refitting import Sampling, apply_step, gather
from selector.repair.ridge_choice import choose_step
from selector.repair.schedule import record_schedule
from selector.repair.walk import Visit
from tests.networks import STYLES, Small, data, randomise, small_networks

Pairs = list[tuple[Tensor, Tensor]]


def images(count: int = 60, size: int = 20, *, side: int = 8, seed: int = 0) -> Pairs:
    chance = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, side, side, generator=chance)
    y = torch.zeros(count, dtype=torch.long)
    return [(x[i : i + size], y[i : i + size]) for i in range(0, count, size)]


def outputs(model: nn.Module, batches: Pairs) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(x) for x, _ in batches])


def cut(
    model: nn.Module, batches: Pairs, channels: Sequence[int]
) -> tuple[nn.Module, tuple[Cut, ...]]:
    """The network without some channels of its first group."""
    group = next(iter(find_groups(model, batches[0][0][:2]).prunable.values()))
    cuts = cuts_of([(group, channels)])
    pruned = copy.deepcopy(model)
    apply_cuts(pruned, cuts)
    return pruned, cuts


def network(style: str = "plain", *, norm: bool = False, width: int = 6) -> nn.Module:
    return randomise(Small(style, width, norm=norm)).eval()


@pytest.mark.parametrize("norm", [False, True])
def test_a_graph_of_torch_fx_is_repaired_as_its_network_is(norm: bool) -> None:
    """Every copy of a graph has a class of its own; the weights come out the same."""
    model, batches = network(norm=norm), images()
    graph = torch.fx.symbolic_trace(model)
    found = []
    for one in (model, graph):
        pruned, cuts = cut(one, batches, (0, 3))
        found.append(reconstruct(one, pruned, batches, kept=cuts))
    assert any(layer.done == "refitted" for layer in found[0].report.layers)
    for name, value in found[0].model.state_dict().items():
        assert torch.equal(value, found[1].model.state_dict()[name])


def duplicate(model: nn.Module, source: int, target: int) -> None:
    """Let one channel of the stem be another one, scaled where no BatchNorm stands in between."""
    small = cast(Small, model)
    layers = [small.stem, small.norm]
    for layer in layers:
        for tensor in (*layer.parameters(), *layer.buffers()):
            if tensor.ndim:
                tensor.data[target] = tensor.data[source]
    if isinstance(small.norm, nn.Identity):
        small.stem.weight.data[target] *= 2  # ReLU keeps it a multiple.
        assert small.stem.bias is not None
        small.stem.bias.data[target] *= 2


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items()}


def distance(first: nn.Module, second: nn.Module) -> float:
    theirs = second.state_dict()
    return max(float((t - theirs[n]).abs().max()) for n, t in first.state_dict().items())


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_where_nothing_was_removed_nothing_changes(style: str, norm: bool) -> None:
    model, batches = network(style, norm=norm), images()
    repaired, report = reconstruct(model, model, batches)
    assert torch.allclose(outputs(repaired, batches), outputs(model, batches), atol=1e-4)
    assert distance(repaired, model) < 1e-4
    assert not report.of("refitted")


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("style", ["plain", "two_consumers", "transposed", "flatten"])
def test_a_channel_that_others_can_replace_is_replaced(style: str, norm: bool) -> None:
    model, batches = network(style, norm=norm), images()
    duplicate(model, 2, 5)
    pruned, cuts = cut(model, batches, [5])
    whole = outputs(model, batches)
    assert (outputs(pruned, batches) - whole).abs().max() > 1e-2
    repaired, report = reconstruct(model, pruned, batches, kept=cuts)
    assert (outputs(repaired, batches) - whole).abs().max() < 1e-4
    assert any(row.ridge is not None for row in report.layers)


@pytest.mark.parametrize("style", STYLES)
def test_a_repaired_network_is_nearer_to_the_whole_one(style: str) -> None:
    model, batches, unseen = network(style, norm=True), images(120), images(seed=1)
    pruned, cuts = cut(model, batches, [0, 3])
    repaired, report = reconstruct(model, pruned, batches, kept=cuts)
    whole = outputs(model, unseen)
    before, after = ((outputs(m, unseen) - whole).square().mean() for m in (pruned, repaired))
    assert after < before
    assert "refitted" in str(report)
    assert report.explained_after > report.explained_before


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    style=st.sampled_from(STYLES),
    norm=st.booleans(),
    count=st.integers(2, 40),
)
def test_no_held_out_error_gets_worse(seed: int, style: str, norm: bool, count: int) -> None:
    model = randomise(Small(style, 4, norm=norm), seed).eval()
    batches = images(count, seed=seed)
    pruned, cuts = cut(model, batches, [1])
    repaired, report = reconstruct(model, pruned, batches, kept=cuts)
    for row in report.layers:
        if row.explained_before is not None and row.explained_after is not None:
            assert row.explained_after >= row.explained_before - 1e-9
    assert all(bool(torch.isfinite(t).all()) for t in repaired.state_dict().values())


@pytest.mark.parametrize(
    "style", ["residual", "depthwise", "grouped", "grouped_transposed", "transposed"]
)
def test_same_seed_same_weights_whatever_the_batches(style: str) -> None:
    model = network(style, norm=True)
    pruned, cuts = cut(model, images(), [1, 2])
    how = Repair(positions=16)
    first, _ = reconstruct(model, pruned, images(size=20), kept=cuts, how=how)
    again, _ = reconstruct(model, pruned, images(size=20), kept=cuts, how=how)
    assert distance(first, again) == 0
    other, _ = reconstruct(model, pruned, images(size=7), kept=cuts, how=how)
    # A float32 network's own outputs differ in the last digits.
    assert distance(first, other) < 1e-4
    assert torch.allclose(outputs(first, images()), outputs(other, images()), atol=1e-5)
    third, _ = reconstruct(model, pruned, images(), kept=cuts, how=Repair(positions=16, seed=1))
    assert distance(first, third) > 1e-4


@settings(max_examples=20, deadline=None)
@given(
    model=small_networks(["relu", "silu"]),
    count=st.integers(10, 40),
    size=st.integers(1, 40),
    positions=st.integers(1, 70),
)
def test_in_float64_batches_make_no_difference(
    model: nn.Module, count: int, size: int, positions: int
) -> None:
    how = Repair(positions=positions)
    repaired = []
    for batch in (size, count):
        batches = data(count, batch)
        pruned, cuts = cut(model, batches, [0])
        repaired.append(reconstruct(model, pruned, batches, kept=cuts, how=how)[0])
    assert distance(*repaired) < 1e-7


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_all_ways_of_walking_agree(style: str, norm: bool) -> None:
    model, batches = network(style, norm=norm), images()
    pruned, cuts = cut(model, batches, [0, 4])
    walked, _ = reconstruct(model, pruned, batches, kept=cuts)
    for how in (Repair(hooks=True), Repair(memory_bytes=1), Repair(memory_bytes=200_000)):
        other, _ = reconstruct(model, pruned, batches, kept=cuts, how=how)
        assert distance(walked, other) < 1e-5, how


def set_later(layer: nn.Module, **numbers: object) -> nn.Module:
    """A layer whose numbers are changed after it was made, as networks for segmentation do."""
    vars(layer).update(numbers)
    return layer


LAYERS = {
    "conv": (nn.Conv2d(3, 4, 3, padding=1), (3, 6, 5)),
    "no bias": (nn.Conv2d(3, 4, 3, bias=False), (3, 6, 5)),
    "stride": (nn.Conv2d(3, 4, (3, 2), (2, 1), padding=(1, 0)), (3, 7, 6)),
    "dilation": (nn.Conv2d(2, 3, 3, padding=2, dilation=(2, 1)), (2, 7, 6)),
    "same": (nn.Conv2d(2, 3, (2, 4), padding="same"), (2, 5, 6)),
    "valid": (nn.Conv2d(2, 3, 2, padding="valid"), (2, 5, 6)),
    "reflect": (nn.Conv2d(2, 3, 3, padding=2, padding_mode="reflect"), (2, 5, 6)),
    "replicate": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate"), (2, 5, 6)),
    "circular": (nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="circular"), (2, 5, 6)),
    "grouped": (nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 6, 5)),
    "depthwise": (nn.Conv2d(4, 4, 3, padding=1, groups=4), (4, 6, 5)),
    "multiplier": (nn.Conv2d(3, 6, 3, padding=1, groups=3), (3, 6, 5)),
    "conv1d": (nn.Conv1d(3, 4, 3, stride=2, padding=1), (3, 11)),
    "conv3d": (nn.Conv3d(2, 3, (1, 2, 3), padding=(0, 1, 1)), (2, 3, 4, 5)),
    "transposed": (nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1), (3, 4, 5)),
    "transposed dilated": (nn.ConvTranspose2d(2, 3, (2, 3), dilation=2), (2, 4, 5)),
    "transposed grouped": (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (4, 4, 3)),
    "transposed1d": (nn.ConvTranspose1d(2, 3, 4, stride=3), (2, 5)),
    "transposed3d": (nn.ConvTranspose3d(2, 2, 2, stride=(1, 2, 2)), (2, 2, 3, 3)),
    "linear": (nn.Linear(5, 4), (5,)),
    "tokens": (nn.Linear(5, 4, bias=False), (6, 5)),
    "dilated later": (
        set_later(nn.Conv2d(2, 3, 3, stride=2), stride=(1, 1), dilation=(2, 1), padding=(2, 1)),
        (2, 7, 6),
    ),
    "one number later": (set_later(nn.Conv2d(2, 3, 3), stride=2, dilation=2, padding=3), (2, 7, 6)),
    "same, dilated later": (
        set_later(nn.Conv2d(2, 3, (2, 3), padding="same"), dilation=(2, 1)),
        (2, 7, 6),
    ),
    "transposed later": (
        set_later(nn.ConvTranspose2d(2, 3, 3), stride=(2, 1), dilation=(1, 2), padding=(1, 0)),
        (2, 4, 5),
    ),
    "grid of tokens": (nn.Linear(5, 4), (2, 3, 5)),
}


def explicit_solution(layer: nn.Module, inputs: Tensor, targets: Tensor) -> list[Tensor]:
    """Slow twin: one column for each weight, from the layer with that weight alone; then lstsq."""
    probe = copy.deepcopy(layer).double()
    parameters = list(probe.parameters())
    columns = []
    with torch.no_grad():
        for parameter in parameters:
            for index in range(parameter.numel()):
                for other in parameters:
                    other.zero_()
                parameter.view(-1)[index] = 1
                columns.append(probe(inputs.double()).flatten().numpy())
    found = np.linalg.lstsq(np.stack(columns, 1), targets.double().flatten().numpy(), rcond=None)
    parts = torch.split(torch.from_numpy(found[0]), [p.numel() for p in parameters])
    return [part.view(p.shape) for part, p in zip(parts, parameters, strict=True)]


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("kind", LAYERS)
def test_the_fit_is_that_of_explicit_equations(kind: str) -> None:
    made, shape = LAYERS[kind]
    layer = copy.deepcopy(made)
    chance = torch.Generator().manual_seed(3)
    inputs = torch.randn(24, *shape, generator=chance)
    with torch.no_grad():
        targets = torch.randn(layer(inputs).shape, generator=chance)
    expected = explicit_solution(layer, inputs, targets)
    sampling = Sampling(torch.arange(24) % 5 == 0, 10_000, 0)
    intercept = layer.bias is not None
    width = targets.shape[1 if isinstance(layer, nn.modules.conv._ConvNd) else -1]
    visits = [Visit(0, 10, 0, inputs[:10], inputs[:10], targets[:10])]
    visits.append(Visit(10, 24, 0, inputs[10:], inputs[10:], targets[10:]))
    with torch.no_grad():
        found = gather("layer", layer, torch.arange(width), visits, sampling, intercept=intercept)
    assert found.count == targets.numel() // width
    both = found.fitting + found.held_out
    step = both.solver(intercept=intercept).step(1e-12)
    assert step is not None
    apply_step(layer, step, found.origin)
    for parameter, value in zip(layer.parameters(), expected, strict=True):
        assert torch.allclose(parameter.detach().double(), value, atol=1e-4)
    with torch.no_grad():
        left = (layer(inputs) - targets).double().square().sum().item()
    assert both.error(step) == pytest.approx(left, rel=1e-4)


@pytest.mark.parametrize("kind", LAYERS)
def test_matrices_go_back_to_where_they_came_from(kind: str) -> None:
    layer = copy.deepcopy(LAYERS[kind][0])
    before = cast(Tensor, layer.weight).detach().clone()
    set_weight_matrices(layer, weight_matrices(layer))
    assert torch.equal(cast(Tensor, layer.weight), before)


def test_sampled_positions_are_those_of_the_image() -> None:
    layer = nn.Conv2d(3, 4, 3, padding=1)
    x = torch.randn(12, 3, 9, 9)
    with torch.no_grad():
        y = torch.randn(layer(x).shape)
        sampling = Sampling(torch.arange(12) < 3, 5, 7)
        whole = gather(
            "a", layer, torch.arange(4), [Visit(0, 12, 0, x, x, y)], sampling, intercept=True
        )
        parts = [Visit(i, i + 1, 0, x[i : i + 1], x[i : i + 1], y[i : i + 1]) for i in range(12)]
        split = gather("a", layer, torch.arange(4), parts, sampling, intercept=True)
    assert whole.fitting.count == split.fitting.count == 9 * max(5, -(-10 * 28 // 12))
    one, other = whole.fitting, split.fitting
    assert isinstance(one, NormalEquations)
    assert isinstance(other, NormalEquations)
    assert torch.allclose(one.gram, other.gram, atol=1e-3)


@pytest.mark.parametrize(("inputs", "kind"), [(50, FewEquations), (5, NormalEquations)])
def test_equations_are_kept_as_rows_where_they_are_few(inputs: int, kind: type) -> None:
    layer, x = nn.Linear(inputs, 3), torch.randn(20, inputs)
    sampling = Sampling(torch.arange(20) < 4, 1, 0)
    with torch.no_grad():
        y = torch.randn(20, 3)
        visits = [
            Visit(0, 12, 0, x[:12], x[:12], y[:12]),
            Visit(12, 20, 0, x[12:], x[12:], y[12:]),
        ]
        found = gather("a", layer, torch.arange(3), visits, sampling, intercept=True)
    assert isinstance(found.fitting, kind)
    assert isinstance(found.held_out, kind)
    assert (found.fitting.count, found.held_out.count) == (16, 4)


class Twice(nn.Module):
    """One convolution called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.again = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for _ in range(2):
            x = torch.relu(self.again(x))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


@pytest.mark.parametrize("hooks", [False, True])
def test_equations_of_a_layer_called_twice_are_added(hooks: bool) -> None:
    model, batches = randomise(Twice()).eval(), images()
    with torch.no_grad():
        for name in ("stem", "again"):
            for parameter in model.get_submodule(name).parameters():
                parameter[5] = parameter[2]
    pruned = copy.deepcopy(model)
    cuts = [Cut("stem", "out", (5,)), Cut("again", "in", (5,)), Cut("again", "out", (5,))]
    apply_cuts(pruned, [*cuts, Cut("head", "in", (5,))])
    repaired, report = reconstruct(model, pruned, batches, kept=cuts, how=Repair(hooks=hooks))
    row = next(row for row in report.layers if row.layer == "again")
    assert row.equations == 2 * 60 * 64
    assert (outputs(repaired, batches) - outputs(model, batches)).abs().max() < 1e-4


def test_frozen_layers_stay_unless_asked() -> None:
    model, batches = network(norm=True), images()
    pruned, cuts = cut(model, batches, [0, 1])
    frozen = ("next", "norm")
    for name in frozen:
        pruned.get_submodule(name).requires_grad_(False)
    repaired, report = reconstruct(model, pruned, batches, kept=cuts)
    for name in frozen:
        before, after = (state(m.get_submodule(name)) for m in (pruned, repaired))
        assert all(torch.equal(before[key], after[key]) for key in before)
    assert {row.layer for row in report.skipped} == set(frozen)
    assert "frozen" in report.skipped[0].note
    asked, whole = reconstruct(model, pruned, batches, kept=cuts, how=Repair(frozen=True))
    changed = {n for n, t in asked.state_dict().items() if not torch.equal(t, state(pruned)[n])}
    assert "next.weight" in changed
    assert not whole.skipped
    assert not asked.get_submodule("next").weight.requires_grad


def test_the_callers_networks_stay_as_they_are() -> None:
    model, batches = network(norm=True), images()
    pruned, cuts = cut(model, batches, [0, 1])
    model.get_submodule("norm").train()
    pruned.train()
    before = state(model), state(pruned)
    repaired, _ = reconstruct(model, pruned, batches, kept=cuts)
    for now, then in zip((model, pruned), before, strict=True):
        assert all(torch.equal(t, then[name]) for name, t in now.state_dict().items())
    assert model.get_submodule("norm").training
    assert not model.training
    assert all(m.training for m in (*pruned.modules(), *repaired.modules()))
    assert not any(m._forward_hooks for m in (*pruned.modules(), *model.modules()))


class TwoInputs(nn.Module):
    """Called with two maps, one of them by name."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 6, 1)
        self.right = nn.Conv2d(3, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor, scale: float = 2.0, *, y: Tensor) -> Tensor:
        out: Tensor = self.head((self.left(x) + scale * self.right(input=y)).tanh().mean((2, 3)))
        return out


@pytest.mark.parametrize("hooks", [False, True])
def test_networks_with_several_inputs(hooks: bool) -> None:
    model = randomise(TwoInputs()).eval()
    batches = [({"x": x, "y": x.flip(0)}, y) for x, y in images()]
    removed = [Cut("left", "out", (0,)), Cut("right", "out", (0,)), Cut("head", "in", (0,))]
    pruned = pruned_of(model, removed)
    _, report = reconstruct(model, pruned, batches, kept=removed, how=Repair(hooks=hooks))
    rows = {row.layer: row for row in report.layers}
    assert [rows[name].explained_before for name in ("left", "right")] == pytest.approx([1, 1])
    head = rows["head"]
    assert head.explained_before is not None
    assert head.explained_after is not None
    assert head.explained_after > head.explained_before
    assert not report.notes


def test_a_norm_behind_an_activation_in_place_absorbs_no_mean() -> None:
    layers = [nn.Conv2d(3, 4, 1, bias=False), nn.ReLU(inplace=True), nn.BatchNorm2d(4)]
    after = nn.Sequential(*layers).eval()
    right_behind = nn.Sequential(layers[0], layers[2], layers[1]).eval()
    x = images()[0][0]
    with torch.no_grad():
        assert record_schedule(after, x).norm_behind == {}
        assert record_schedule(right_behind, x).norm_behind == {"0": "1"}


def test_an_inference_mode_around_does_no_harm() -> None:
    model, batches = network(norm=True), images()
    pruned, cuts = cut(model, batches, [0, 1])
    expected, _ = reconstruct(model, pruned, batches, kept=cuts)
    with torch.inference_mode():
        found, _ = reconstruct(model, pruned, batches, kept=cuts)
    assert distance(found, expected) == 0


def test_in_place_is_the_same() -> None:
    model, batches = network("residual", norm=True), images()
    pruned, cuts = cut(model, batches, [0, 1])
    repaired, report = reconstruct(model, pruned, batches, kept=cuts)
    assert reconstruct_in_place(model, pruned, batches, kept=cuts) == report
    assert distance(repaired, pruned) == 0


class InPlace(nn.Module):
    """Writes into what a later layer reads, as many networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.act = nn.ReLU(inplace=True)
        self.next = nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        y = self.act(self.next(self.act(x)))
        y += x
        out: Tensor = self.head(y.mean((2, 3)))
        return out


class Winding(InPlace):
    """torch.fx cannot trace it."""

    def forward(self, x: Tensor) -> Tensor:
        if float(x.abs().sum()) < 0:
            return x
        return super().forward(x)


def test_a_network_that_cannot_be_traced_is_walked_by_hooks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain, batches = randomise(InPlace()).eval(), images()
    winding = Winding().eval()
    winding.load_state_dict(plain.state_dict())
    removed = Cut("stem", "out", (3,)), Cut("norm", "both", (3,)), Cut("next", "in", (3,))
    cuts = (*removed, Cut("next", "out", (3,)), Cut("head", "in", (3,)))
    repaired = []
    for model in (plain, winding):
        pruned = copy.deepcopy(model)
        apply_cuts(pruned, cuts)
        with caplog.at_level(logging.WARNING, "selector"):
            made, report = reconstruct(model, pruned, batches, kept=cuts)
        repaired.append(made)
    assert distance(*repaired) < 1e-5
    assert len(caplog.records) == 1
    assert "by hooks" in caplog.text
    assert "by hooks" in str(report)
    tight, _ = reconstruct(
        plain, pruned_of(plain, cuts), batches, kept=cuts, how=Repair(memory_bytes=1)
    )
    assert distance(tight, repaired[0]) < 1e-5


def pruned_of(model: nn.Module, cuts: Sequence[Cut]) -> nn.Module:
    pruned = copy.deepcopy(model)
    apply_cuts(pruned, cuts)
    return pruned


class Odd(nn.Module):
    """Layers that are not refitted, each for a reason of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.made = nn.Conv2d(3, 4, 1)
        parametrize.register_parametrization(self.made, "weight", nn.Tanh())
        self.slope = nn.PReLU(4)
        self.tied = nn.Linear(4, 4)
        self.twin = nn.Linear(4, 4)
        self.twin.weight = self.tied.weight
        self.idle = nn.Linear(4, 4)
        self.idle_norm = nn.BatchNorm1d(4)
        self.own = OwnForward(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.slope(self.made(x)).mean((2, 3))
        out: Tensor = self.own(self.twin(self.tied(x)))
        return out


class OwnForward(nn.Linear):
    """Not the linear layer that its class says."""

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = super().forward(input).exp()
        return out


def test_what_is_not_refitted_is_named_with_the_reason() -> None:
    model, batches = randomise(Odd()).eval(), images()
    repaired, report = reconstruct(model, model, batches)
    notes = {row.layer: row.note for row in report.skipped}
    assert "parametrised" in notes["made"]
    assert "PReLU" in notes["slope"]
    assert "twin.weight" in notes["tied"]
    assert "tied.weight" in notes["twin"]
    assert "not called" in notes["idle"]
    assert "not called" in notes["idle_norm"]
    assert "forward of its own" in notes["own"]
    assert distance(repaired, model) == 0


def test_the_history_of_torch_pruning_says_what_is_left() -> None:
    model, batches = network("concat", norm=True), images()
    pruned = copy.deepcopy(model)
    example = batches[0][0][:2]
    graph = tp.DependencyGraph().build_dependency(pruned, example)
    for layer, channels in ((pruned.stem, [1, 4]), (pruned.stem, [0]), (pruned.right, [2])):
        graph.get_pruning_group(layer, tp.prune_conv_out_channels, channels).prune()
    kept = kept_after_history(model, graph.pruning_history(), example)
    assert kept["stem"] == kept["norm"] == (2, 3, 5)
    assert kept["right"] == (0, 1)
    assert kept["head"] == tuple(range(5))
    repaired, _ = reconstruct(model, pruned, batches, kept=kept)
    whole = outputs(model, batches)
    before, after = ((outputs(m, batches) - whole).square().mean() for m in (pruned, repaired))
    assert after < before


def test_one_image_changes_no_weight_and_says_so() -> None:
    model = network()
    pruned, cuts = cut(model, images(), [0, 1])
    repaired, report = reconstruct(model, pruned, images(1), kept=cuts)
    assert distance(repaired, pruned) == 0
    assert "one image" in str(report)


def test_too_few_equations_are_named_and_do_little() -> None:
    model = network("flatten", width=12)
    pruned, cuts = cut(model, images(), [0])
    repaired, report = reconstruct(model, pruned, images(8), kept=cuts)
    row = next(row for row in report.layers if row.layer == "hidden")
    assert row.equations < row.unknowns
    assert "fewer equations" in row.note
    unseen = images(200, seed=5)
    whole = outputs(model, unseen)
    before, after = ((outputs(m, unseen) - whole).square().mean() for m in (pruned, repaired))
    assert after < 1.5 * before


def test_activations_that_are_no_numbers_name_the_layer() -> None:
    model, batches = network(), images()
    pruned, cuts = cut(model, batches, [0])
    next(pruned.get_submodule("stem").parameters()).data[0] = float("nan")
    with pytest.raises(SelectorError, match=r"layer 'stem' .* finite"):
        reconstruct(model, pruned, batches, kept=cuts)


@pytest.mark.parametrize("norm", [False, True])
def test_images_that_are_no_numbers_name_the_first_layer(norm: bool) -> None:
    model, batches = network(norm=norm), images()
    batches[1][0][3] = float("inf")
    with pytest.raises(SelectorError, match=r"layer 'stem' .* finite"):
        reconstruct(model, model, batches)


def test_networks_that_do_not_belong_together_name_the_first_mismatch() -> None:
    model, batches = network(), images()
    pruned, cuts = cut(model, batches, [0])
    with pytest.raises(SelectorError, match="layer 'stem' has 5 outputs of 6"):
        reconstruct(model, pruned, batches)
    with pytest.raises(SelectorError, match="do not belong together: layer 'stem': 4 outputs"):
        reconstruct(model, pruned, batches, kept={"stem": [0, 1, 2, 3]})
    with pytest.raises(SelectorError, match="layer 'stem': the outputs said to be left"):
        reconstruct(model, pruned, batches, kept={"stem": [0, 1, 2, 3, 9]})
    with pytest.raises(SelectorError, match="kept names 'nose'"):
        reconstruct(model, pruned, batches, kept={"nose": [0]})
    with pytest.raises(SelectorError, match="no layer 'nose'"):
        reconstruct(model, pruned, batches, kept=[Cut("nose", "out", (0,))])
    with pytest.raises(SelectorError, match="layer 'inner': the unpruned network has no such"):
        reconstruct(model, network("residual"), batches, kept=cuts)
    strided = randomise(Small("plain", 6, stride=2)).eval()
    with pytest.raises(SelectorError, match="layer 'stem': its stride is"):
        reconstruct(model, strided, batches)


class Random(nn.Module):
    """Never gives the same twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x + torch.randn_like(x)).mean((2, 3))
        return out


def test_outputs_that_change_between_runs_are_refused() -> None:
    model = Random()
    with pytest.raises(SelectorError, match="unpruned network's outputs change between two runs"):
        reconstruct(model, model, images())


def test_the_search_for_a_ridge_keeps_what_fits() -> None:
    layer = nn.Linear(5, 3)
    x = torch.randn(50, 5)
    sampling = Sampling(torch.arange(50) < 10, 1, 0)
    with torch.no_grad():
        exact = gather(
            "a", layer, torch.arange(3), [Visit(0, 50, 0, x, x, layer(x))], sampling, intercept=True
        )
        y = layer(x) + 3
        moved = gather(
            "a", layer, torch.arange(3), [Visit(0, 50, 0, x, x, y)], sampling, intercept=True
        )
    kept = choose_step(exact.fitting, exact.held_out, bias=True, absorbed=False)
    assert kept.step.change is None
    assert kept.after == pytest.approx(1)
    choice = choose_step(moved.fitting, moved.held_out, bias=True, absorbed=False)
    assert choice.step.change is None
    assert torch.allclose(choice.step.shift, torch.full((1, 3), 3.0).double(), atol=1e-5)
