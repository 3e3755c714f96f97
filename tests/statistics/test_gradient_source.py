"""Gradients of the network's own softened outputs: no labels, and none that vanish."""

import copy

import pytest
import torch
from torch import Tensor, nn

from selector.errors import SelectorError
from selector.network.tracing import find_groups
from selector.saliency.checks import Scene
from selector.saliency.registry import METRICS
from selector.saliency.scoring import score, score_signals
from selector.statistics.collect import measure_signals
from selector.statistics.gradient_source import TEMPERATURE, OfSoftenedOutputs
from tests.networks import data, small
from tests.reference import singles, slow
from tests.scored import close

GRADIENTS = [name for name, m in METRICS.items() if m.needs == {"backward"}]
SECOND = ["obd", "gauss_newton", "second_taylor_gate", "grasp"]


def unlabelled(count: int = 12, batch: int = 4) -> list[tuple[Tensor, None]]:
    return [(images, None) for images, _ in data(count, batch)]


def labels_of(model: nn.Module, images: Tensor, seed: int = 0) -> Tensor:
    """One image after the other, by walking along its shares."""
    generator = torch.Generator().manual_seed(seed)
    labels = []
    for image in images:
        shares = (model(image[None])[0] / TEMPERATURE).softmax(0).tolist()
        left = float(torch.rand((), generator=generator, dtype=torch.float64))
        label = 0
        while label < len(shares) - 1 and left > shares[label]:
            left -= shares[label]
            label += 1
        labels.append(label)
    return torch.tensor(labels)


@pytest.mark.parametrize("style", ["residual", "flatten", "two_consumers"])
def test_scores_equal_the_slow_twins_with_the_labels_that_were_drawn(style: str) -> None:
    model, images = small(style, 3, norm=True), torch.cat([x for x, _ in data(5)])
    labels = labels_of(model, images)
    groups = find_groups(model, images).required()
    # Metrics of the head's weights alone, which `rank_mean` asks, would feel the twin's scale.
    names = [name for name in (*GRADIENTS, *SECOND) if name != "rank_mean"]
    needs = frozenset[str]().union(*(METRICS[name].needs for name in names))
    batches = [(images[:3], None), (images[3:], None)]
    signals = measure_signals(model, batches, groups, needs=needs, gradients="softened")
    # The same network with softened outputs: gradients times weights of the head stay as they are.
    twin = copy.deepcopy(model)
    twin.head.weight.data /= TEMPERATURE
    twin.head.bias.data /= TEMPERATURE
    for group, found in score_signals(signals, names).items():
        scene = Scene(twin, groups[group], singles([(images, labels)]))
        for name, values in found.items():
            expected = torch.tensor(slow(scene, name), dtype=torch.float64)
            assert close(values, expected, 1e-5), (group, name, values, expected)
        assert signals[group].run is not None
        assert torch.tensor(signals[group].run.loss).isnan()


def test_no_labels_are_needed_and_those_there_are_give_the_loss_alone() -> None:
    model = small("plain", norm=True)
    groups = find_groups(model, data()[0][0]).required()
    bare = measure_signals(model, unlabelled(), groups, gradients="softened")
    labelled = measure_signals(model, data(), groups, gradients="softened")
    plain = measure_signals(model, data(), groups)
    for name in groups:
        one, other = bare[name], labelled[name]
        assert torch.equal(one.taylor.absolute_of_sum, other.taylor.absolute_of_sum)
        assert not torch.equal(one.taylor.absolute_of_sum, plain[name].taylor.absolute_of_sum)
        assert other.run is not None
        assert plain[name].run == other.run
        assert torch.equal(one.activation.absolute, plain[name].activation.absolute)


@pytest.mark.parametrize("style", ["plain", "grouped", "grouped_transposed"])
def test_how_images_are_batched_changes_nothing(style: str) -> None:
    model = small(style, norm=True)
    names = [*GRADIENTS, "obd", "grasp"]
    names = [name for name in names if name != "batchnorm_scale"]
    whole, parts, single = (
        score(model, unlabelled(11, size), names, gradients="softened") for size in (11, 4, 1)
    )
    for group, found in whole.items():
        for metric, values in found.items():
            if metric.startswith("rank_mean"):
                continue  # Rounding parts ties.
            assert close(parts[group][metric], values, 1e-6), (group, metric)
            assert close(single[group][metric], values, 1e-6), (group, metric)


def test_the_generators_seed_draws_the_labels() -> None:
    model = small("plain")

    def taylor(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        options = {"generator": generator, "gradients": "softened"}
        return score(model, unlabelled(), ["taylor"], **options)["stem"]["taylor"]  # type: ignore[arg-type]

    assert torch.equal(taylor(1), taylor(1))
    assert not torch.equal(taylor(1), taylor(2))


def test_labels_are_drawn_as_often_as_the_softened_outputs_say() -> None:
    logits = torch.tensor([2.0, -1.0, 0.5, 4.0], dtype=torch.float64, requires_grad=True)
    many = logits.expand(20_000, 4)
    (slope,) = torch.autograd.grad(OfSoftenedOutputs(0).value(many, None, 0), logits)
    # Of labels drawn from the shares themselves, the mean gradient is zero.
    assert float(slope.abs().max()) < 4 * 0.5 / 20_000**0.5 / TEMPERATURE


def test_gradients_do_not_vanish_where_the_network_is_sure() -> None:
    model = small("plain", norm=True)
    images = data()[0][0]
    model.head.weight.data *= 500
    sure = [(images, model(images).argmax(1))]
    by_labels, by_outputs = (
        score(model, sure, ["taylor"], gradients=kind)["stem"]["taylor"]  # type: ignore[arg-type]
        for kind in ("labels", "softened")
    )
    assert float(by_labels.max()) < 1e-3 * float(by_outputs.max())


def test_an_activation_in_place_draws_no_second_label() -> None:
    def net(inplace: bool) -> nn.Module:
        torch.manual_seed(0)
        body = [nn.Conv2d(3, 4, 3), nn.ReLU(inplace), nn.Conv2d(4, 4, 3), nn.ReLU(inplace)]
        return nn.Sequential(*body, nn.Flatten(), nn.Linear(64, 5)).double().eval()

    one, other = (
        score(net(inplace), unlabelled(), ["taylor", "grasp"], gradients="softened")
        for inplace in (True, False)
    )
    for group, found in one.items():
        for metric, values in found.items():
            assert close(values, other[group][metric], 1e-12)


def test_pixels_have_labels_of_their_own() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1)).double().eval()
    found = score(model, unlabelled(), ["taylor"], gradients="softened")
    assert found["0"]["taylor"].isfinite().all()
    with pytest.raises(SelectorError, match=r"second-order metrics .* take logits"):
        score(model, unlabelled(), ["obd"], gradients="softened")


def test_what_cannot_be_softened_is_told() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = small("plain")

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {"label": self.body(images)}

    with pytest.raises(SelectorError, match=r"one tensor of logits .* not dict"):
        score(Two(), unlabelled(), ["taylor"], gradients="softened")
    with pytest.raises(SelectorError, match="unknown gradients='soft'; known: labels, softened"):
        score(small("plain"), data(), ["taylor"], gradients="soft")  # type: ignore[arg-type]
