"""The pass over the data: layers that work in place, memory that is freed, what is missing."""

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from selector.errors import SelectorError
from selector.network.tracing import find_groups
from selector.saliency.proposals.set_errors import NEEDS
from selector.saliency.registry import METRICS
from selector.saliency.scoring import needs_of, score
from selector.statistics.channel_statistics import MeasuringPoint, Signals
from selector.statistics.collect import measure_signals
from selector.statistics.reductions import Moments
from selector.statistics.statistic import Need
from tests.networks import data, randomise, small
from tests.scored import check_twins, scores_of

ALL: frozenset[Need] = needs_of(METRICS)


class InPlace(nn.Module):
    """Activations that may write over what a convolution, a sum or a linear layer just gave."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.inplace = inplace
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.act = nn.ReLU(inplace)
        self.inner = nn.Conv2d(4, 5, 3, padding=1)
        self.leaky = nn.LeakyReLU(0.1, inplace)
        self.back = nn.Conv2d(5, 4, 1)
        self.hidden = nn.Linear(4, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.act(self.stem(images))
        y = self.back(self.leaky(self.inner(x)))
        if self.inplace:
            y += x
        else:
            y = y + x
        y = self.act(y).mean((2, 3))
        return self.head(self.act(self.hidden(y)))


def pair() -> tuple[nn.Module, nn.Module]:
    one, other = (randomise(InPlace(inplace).double()).eval() for inplace in (True, False))
    return one, other


def signals_of(model: nn.Module, needs: frozenset[Need] = ALL) -> dict[str, Signals]:
    batches = data(7, 3)
    groups = find_groups(model, batches[0][0]).required()
    return measure_signals(model, batches, groups, needs=needs)


def same_moments(one: MeasuringPoint, other: MeasuringPoint) -> None:
    assert one.quantities.keys() == other.quantities.keys()
    for quantity, moments in one.quantities.items():
        for name in Moments.__dataclass_fields__:
            expected = getattr(other.quantities[quantity], name)
            assert torch.equal(getattr(moments, name), expected), (quantity, name)
    assert one.statistics.keys() == other.statistics.keys()
    for name, values in one.statistics.items():
        assert torch.equal(values, other.statistics[name]), name
    assert one.positions == other.positions


def test_an_activation_in_place_changes_no_statistic() -> None:
    inplace, outofplace = (signals_of(model) for model in pair())
    assert inplace.keys() == outofplace.keys()
    assert set(inplace) == {"stem", "inner", "hidden"}
    for name, found in inplace.items():
        same_moments(found.at_consumers, outofplace[name].at_consumers)
        same_moments(found.at_producers, outofplace[name].at_producers)
        assert found.run == outofplace[name].run


def test_an_activation_in_place_changes_no_score() -> None:
    inplace, outofplace = (scores_of(model, data(7, 3)) for model in pair())
    for group, found in outofplace.items():
        for metric, values in found.items():
            assert torch.equal(inplace[group][metric], values), (group, metric)
    check_twins(pair()[0], data(3, 2), scores_of(pair()[0], data(3, 2)))


@pytest.fixture
def collector() -> Iterator[None]:
    """Cycles stay: only what is freed by itself is gone."""
    gc.disable()
    yield
    gc.enable()


def watched(model: nn.Module) -> list[weakref.ref[Tensor]]:
    """References to everything that flows between the layers of a network, as it flows."""
    seen: list[weakref.ref[Tensor]] = []

    def watch(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        seen.extend(weakref.ref(tensor) for tensor in (*args, output) if tensor.dim() > 1)

    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(watch)
    return seen


def alive(seen: list[weakref.ref[Tensor]], images: list[Tensor]) -> int:
    known = {id(image) for image in images}
    return sum(1 for ref in seen if ref() is not None and id(ref()) not in known)


@pytest.mark.usefixtures("collector")
@pytest.mark.parametrize(
    "kind", ["in place", "out of place", "residual", "flatten", "grouped", "grouped_transposed"]
)
@pytest.mark.parametrize(
    "needs", [{"forward"}, {"backward"}, {"second_order"}, {"hessian"}, {"maps"}, ALL]
)
def test_nothing_of_a_batch_is_kept(kind: str, needs: set[Need]) -> None:
    inplace, outofplace = pair()
    model = {"in place": inplace, "out of place": outofplace}.get(kind)
    model = small(kind, norm=True) if model is None else model
    batches = data(12, 3)
    groups = find_groups(model, batches[0][0]).prunable
    seen = watched(model)
    signals = measure_signals(model, batches, groups, needs=needs)
    assert signals
    assert len(seen) > 20
    assert alive(seen, [images for images, _ in batches]) == 0


@pytest.mark.usefixtures("collector")
def test_no_batch_outlives_the_next() -> None:
    """At the start of a batch nothing is left of the one before: memory is that of one batch."""
    model = small("residual", norm=True)
    batches = data(12, 3)
    groups = find_groups(model, batches[0][0]).prunable
    seen = watched(model)
    left = []
    model.register_forward_pre_hook(
        lambda *_: left.append(alive(seen, [images for images, _ in batches]))
    )
    measure_signals(model, batches, groups, needs=ALL)
    # The outputs of the last batch are only let go as the next one's are there.
    assert len(left) >= 4
    assert max(left) <= 1


def test_signals_hold_no_graph_and_no_maps() -> None:
    for found in signals_of(pair()[1]).values():
        points = (found.at_consumers, found.at_producers)
        tensors = [t for p in points for m in p.quantities.values() for t in vars(m).values()]
        tensors += [t for point in points for t in point.statistics.values()]
        for tensor in (*tensors, found.rows, found.random, *found.memo.values()):
            assert not tensor.requires_grad
            assert tensor.numel() <= 4 * 60


@pytest.mark.parametrize(
    ("needs", "lacking", "message"),
    [
        ("weights", lambda s: s.taylor, "these signals hold weights only"),
        ("weights", lambda s: s.positive_share, "these signals hold weights only"),
        ("weights", lambda s: s.weight_gradient, "no gradient of the weights"),
        ("forward", lambda s: s.taylor, r"no 'taylor' \(measured: value\)"),
        ("forward", lambda s: s.at_producers["effect"], "no 'effect'"),
        ("forward", lambda s: s.statistic("energy"), "no energy"),
        ("backward", lambda s: s.weight_curvature, "no curvature of the weights"),
        ("backward", lambda s: s.at_consumers["projected"], "no 'projected'"),
        ("second_order", lambda s: s.statistic("rank"), "no rank"),
    ],
)
def test_what_was_not_measured_is_told(needs: Need, lacking: object, message: str) -> None:
    found = signals_of(small("plain"), frozenset({needs}))["stem"]
    with pytest.raises(SelectorError, match=f"{message}.*state what the metric needs"):
        lacking(found)  # type: ignore[operator]


def test_a_metric_that_a_group_cannot_have_is_an_error_by_name_alone() -> None:
    model = small("plain", norm=True)
    assert "batchnorm_scale" not in score(model, data())["next"]
    with pytest.raises(SelectorError, match=r"'batchnorm_scale' needs .* group 'next' has none"):
        score(model, data(), ["l1", "batchnorm_scale"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_changes_scores_by_its_rounding(dtype: torch.dtype) -> None:
    """Sums run in float64 whatever the network computes in."""
    model, tolerance = small("two_consumers", norm=True), {torch.float32: 1e-4, torch.bfloat16: 0.2}
    expected = scores_of(model, data(8))
    lower = [(images.to(dtype), labels) for images, labels in data(8)]
    names = [name for name in METRICS if name not in ("hrank", "rank_mean", "rank_mean_gradient")]
    found = scores_of(model.to(dtype), lower, names)
    for group, scores in found.items():
        for metric, values in scores.items():
            assert values.dtype == torch.float64
            exact = expected[group][metric]
            gap = float((values - exact).abs().max() / exact.abs().max())
            assert gap < tolerance[dtype], (group, metric, gap)


def test_layers_called_by_keyword_are_measured_as_by_position() -> None:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
            self.head = nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.b(input=torch.relu(self.a(input=x))))
            return self.head(input=x.mean((2, 3)))

    class Positions(Keywords):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))

    one, other = (
        scores_of(randomise(kind().double()).eval(), data()) for kind in (Keywords, Positions)
    )
    assert set(one) == {"a", "b"}
    for group, found in one.items():
        for metric, values in found.items():
            assert torch.equal(values, other[group][metric]), (group, metric)


def test_a_compiled_network_is_scored_as_the_one_inside() -> None:
    model = small("plain", norm=True)
    expected = score(model, data(), ["l1", "taylor"])
    found = score(torch.compile(model, backend="eager"), data(), ["l1", "taylor"])
    for group, metrics in expected.items():
        for metric, values in metrics.items():
            assert torch.equal(found[group][metric], values), (group, metric)


class Tokens(nn.Module):
    """Linear layers on tokens, the first one followed by an activation that may work in place."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.stem, self.act = nn.Linear(8, 6), nn.ReLU(inplace)
        self.inner, self.head = nn.Linear(6, 4), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.act(self.inner(self.act(self.stem(images.flatten(1, 2))))).mean(1))


def test_gradients_of_tokens_are_not_lost_to_what_works_in_place() -> None:
    found = [signals_of(randomise(Tokens(inplace).double()).eval()) for inplace in (True, False)]
    for name, one in found[0].items():
        for point in ("at_consumers", "at_producers"):
            first, second = (getattr(signals[name], point) for signals in found)
            same_moments(first, second)
        assert "gradient" in one.at_producers.quantities


class Words(nn.Module):
    """A stream that begins with an embedding of words, so that no layer before it has weights."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 6)
        self.one, self.two, self.head = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        return self.head((x + self.two(torch.relu(self.one(x)))).mean(1))


def test_gradients_reach_what_reads_an_embedding() -> None:
    model = randomise(Words().double()).eval()
    chance = torch.Generator().manual_seed(0)
    tokens = torch.randint(20, (8, 7), generator=chance)
    labels = torch.randint(5, (8,), generator=chance)
    group = find_groups(model, tokens).prunable["two"]
    found = measure_signals(model, [(tokens, labels)], {"two": group}, needs=frozenset(NEEDS))[
        "two"
    ]
    read = model.words(tokens).detach()
    through = read.clone().requires_grad_(True)  # The gradient of what `one` reads there.
    outputs = model.head((read + model.two(torch.relu(model.one(through)))).mean(1))
    (slopes,) = torch.autograd.grad(
        nn.functional.cross_entropy(outputs, labels, reduction="sum"), through
    )
    rows = slopes.detach().reshape(-1, 6)
    first = found.consumer_inputs[0].products["gradient_products"]
    assert torch.allclose(first[0], rows.T @ rows / tokens.numel())
    assert all("gradient_products" in one.products for one in found.consumer_inputs)
    assert model.words.weight.grad is None
    assert model.words.weight.requires_grad
