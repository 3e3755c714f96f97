"""Curvature: the factor of every loss's Hessian, unbiased estimates, Hessian times gradient."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from selector.data.loss import Objective
from selector.errors import SelectorError
from selector.saliency.scoring import score
from selector.statistics.curvature import projections
from tests.networks import data, small
from tests.scored import close, scores_of

SECOND = ["obd", "gauss_newton", "second_taylor_gate", "grasp"]


def two_parts(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """A loss of two outputs that also ties them together."""
    label = functional.cross_entropy(outputs["label"], targets["label"])
    place = functional.mse_loss(outputs["place"], targets["place"])
    joint = (outputs["label"][:, 0] * outputs["place"][:, 1]).square().mean()
    return label + 0.5 * place + 0.1 * joint


def image(outputs: int, seed: int = 0) -> Tensor:
    return torch.randn(1, outputs, generator=torch.Generator().manual_seed(seed)).double()


LOSSES: dict[str, tuple[Callable[..., Tensor] | None, object, object]] = {
    "cross-entropy": (None, image(4), torch.tensor([2])),
    "cross-entropy of one's own": (functional.cross_entropy, image(4), torch.tensor([2])),
    "cross-entropy of soft labels": (None, image(3), image(3, 1).softmax(1)),
    "cross-entropy of pixels": (None, image(4).view(1, 2, 1, 2), torch.tensor([[[1, 0]]])),
    "smoothed labels": (
        functools.partial(functional.cross_entropy, label_smoothing=0.2),
        image(4),
        torch.tensor([1]),
    ),
    "squares": (functional.mse_loss, image(4), image(4, 1)),
    "absolutes": (functional.l1_loss, image(4), image(4, 1)),
    "fourth powers": (lambda o, t: (o - t).pow(4).mean(), image(3), image(3, 1)),
    "two outputs": (
        two_parts,
        {"label": image(2), "place": image(2, 1)},
        {"label": torch.tensor([1]), "place": image(2, 2)},
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_projections_on_all_signs_average_to_the_hessian(name: str) -> None:
    loss, outputs, targets = LOSSES[name]
    leaves, spec = pytree.tree_flatten(outputs)
    flat = torch.cat([leaf.flatten() for leaf in leaves])
    hessian = torch.autograd.functional.hessian(
        lambda values: Objective(loss).mean(unflattened(values, leaves, spec), targets), flat
    )
    values, vectors = torch.linalg.eigh(hessian)
    positive = vectors @ torch.diag(values.clamp_min(0)) @ vectors.T
    # The same image many times over: the first with each of the sign vectors is picked out.
    count, width = 400, len(flat)
    many = [leaf.expand(count, *leaf.shape[1:]).clone().requires_grad_() for leaf in leaves]
    repeated = pytree.tree_map(lambda leaf: leaf.expand(count, *leaf.shape[1:]), targets)
    found = projections(
        Objective(loss),
        pytree.tree_unflatten(many, spec),
        repeated,
        torch.Generator().manual_seed(0),
    )
    assert [part.shape for part in found] == [leaf.shape for leaf in many]
    signs = torch.randint(0, 2, (count, width), generator=torch.Generator().manual_seed(0))
    rows = torch.cat([part.flatten(1) for part in found], 1)
    by_signs = {tuple(sign.tolist()): row for sign, row in zip(signs, rows, strict=True)}
    assert len(by_signs) == 2**width
    mean = torch.stack([torch.outer(row, row) for row in by_signs.values()]).mean(0)
    assert torch.allclose(mean, positive, atol=1e-9)
    if name not in ("fourth powers", "two outputs"):
        assert torch.allclose(positive, hessian, atol=1e-9)


def unflattened(values: Tensor, leaves: list[Tensor], spec: pytree.TreeSpec) -> object:
    parts = torch.split(values, [leaf.numel() for leaf in leaves])
    shaped = [part.view(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    return pytree.tree_unflatten(shaped, spec)


@pytest.mark.parametrize("name", LOSSES)
def test_projections_do_not_depend_on_the_batch(name: str) -> None:
    loss, outputs, targets = LOSSES[name]
    stacked = [
        pytree.tree_map(
            lambda leaf: torch.cat(
                [leaf + 0.1 * k if leaf.is_floating_point() else leaf for k in range(5)]
            ),
            values,
        )
        for values in (outputs, targets)
    ]
    if name == "cross-entropy of soft labels":
        stacked[1] = stacked[1].softmax(1)  # type: ignore[attr-defined]

    def projected(parts: list[slice]) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        rows = []
        for part in parts:
            some, wanted = (pytree.tree_map(lambda leaf, part=part: leaf[part], v) for v in stacked)
            some = pytree.tree_map(lambda leaf: leaf.clone().requires_grad_(), some)
            found = projections(Objective(loss), some, wanted, generator)
            rows.append(torch.cat([leaf.flatten(1) for leaf in found], 1))
        return torch.cat(rows)

    whole = projected([slice(0, 5)])
    assert torch.allclose(projected([slice(0, 3), slice(3, 5)]), whole, atol=1e-10)
    assert torch.allclose(projected([slice(n, n + 1) for n in range(5)]), whole, atol=1e-10)


def test_too_many_outputs_for_a_loss_of_ones_own_are_an_error() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = small("plain")
            self.more = nn.Linear(5, 2049).double()

        def forward(self, images: Tensor) -> Tensor:
            return self.more(self.body(images))

    with pytest.raises(SelectorError, match=r"an image has 2049 outputs \(at most 2048\)"):
        score(Wide(), data(4), ["obd"], loss=functional.cross_entropy)
    # Cross-entropy has its factor in closed form.
    assert score(Wide(), data(4), ["obd"])["body.stem"]["obd"].isfinite().all()


class TwoHeads(nn.Module):
    """Outputs in a dictionary, by a body whose logits two linear layers read."""

    def __init__(self) -> None:
        super().__init__()
        self.body = small("two_consumers", norm=True)
        self.label, self.place = nn.Linear(5, 3).double(), nn.Linear(5, 2).double()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        read = torch.tanh(self.body(images))
        return {"label": self.label(read), "place": self.place(read)}


def two_head_data(batch: int) -> list[tuple[Tensor, dict[str, Tensor]]]:
    return [
        (images, {"label": labels % 3, "place": images.mean((2, 3))[:, :2]})
        for images, labels in data(12, batch)
    ]


def test_a_loss_of_several_outputs_has_second_order_metrics() -> None:
    torch.manual_seed(0)
    model = TwoHeads()
    whole = score(model, two_head_data(12), SECOND, loss=two_parts)
    assert "body.head" in whole
    parts = score(model, two_head_data(5), SECOND, loss=two_parts)
    for group, found in whole.items():
        for name, values in found.items():
            assert values.isfinite().all()
            assert values.any()
            assert close(parts[group][name], values, 1e-6), (group, name)


def test_an_output_that_the_loss_does_not_use_is_an_error() -> None:
    torch.manual_seed(0)

    def label_alone(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
        return functional.cross_entropy(outputs["label"], targets["label"])

    assert score(TwoHeads(), two_head_data(6), ["taylor"], loss=label_alone)
    with pytest.raises(SelectorError, match=r"an output of the network .* does not use"):
        score(TwoHeads(), two_head_data(6), ["obd"], loss=label_alone)


def test_a_loss_that_is_linear_in_the_outputs_has_no_curvature() -> None:
    def linear(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs[:, 0].mean()

    found = score(small("plain"), data(), ["obd", "gauss_newton"], loss=linear)["stem"]
    assert not found["obd"].any()
    assert not found["gauss_newton"].any()


def test_the_gauss_newton_of_a_gate_is_the_curvature_along_it_on_average() -> None:
    """Over many seeds; the exact value is half the gate's J^T H J, image by image."""
    model, batches = small("residual", 3, act="tanh"), data(3)
    exact = [0.0] * 3
    for images, labels in batches:
        for one, label in zip(images.split(1), labels.split(1), strict=True):
            for channel in range(3):
                exact[channel] += curvature_along_gate(model, one, label, channel) / 2 / 3
    drawn = torch.stack(
        [
            score(model, batches, ["gauss_newton"], generator=torch.Generator().manual_seed(seed))[
                "stem"
            ]["gauss_newton"]
            for seed in range(150)
        ]
    )
    error = drawn.std(0) / len(drawn) ** 0.5
    assert ((drawn.mean(0) - torch.tensor(exact)).abs() < 4 * error).all()


def curvature_along_gate(model: nn.Module, one: Tensor, label: Tensor, channel: int) -> float:
    def outputs(gate: Tensor) -> Tensor:
        factors = torch.ones(3, dtype=torch.float64)
        factors = torch.where(torch.arange(3) == channel, gate, factors)[None, :, None, None]
        handles = [
            model.inner.register_forward_pre_hook(lambda _, args: args[0] * factors),
            model.head.register_forward_pre_hook(lambda _, args: args[0] * factors[:, :, 0, 0]),
        ]
        try:
            return model(one)
        finally:
            for handle in handles:
                handle.remove()

    gate = torch.ones((), dtype=torch.float64)
    slopes = torch.autograd.functional.jacobian(outputs, gate)[0]
    hessian = torch.autograd.functional.hessian(
        lambda logits: functional.cross_entropy(logits, label), model(one).detach()
    )[0, :, 0]
    return float(slopes @ hessian @ slopes)


def test_grasp_is_the_change_of_the_gradients_norm_along_a_filter() -> None:
    """w^T H g is half the slope of the squared norm of the gradient as the filter grows."""
    model, batches = small("plain", act="tanh"), data()
    found = scores_of(model, batches, ["grasp"])["stem"]["grasp"]
    step = 1e-5

    def squared_norm(channel: int, factor: float) -> float:
        weight = model.stem.weight.data
        model.stem.weight.data = weight.clone()
        model.stem.weight.data[channel] *= factor
        total: dict[str, Tensor] = {}
        for images, labels in batches:
            loss = functional.cross_entropy(model(images), labels) / len(batches)
            names = ("stem", "next")
            slopes = torch.autograd.grad(loss, [getattr(model, name).weight for name in names])
            for name, slope in zip(names, slopes, strict=True):
                total[name] = total.get(name, torch.zeros_like(slope)) + slope
        model.stem.weight.data = weight
        return float(sum(slope.square().sum() for slope in total.values()))

    for channel in range(4):
        slope = squared_norm(channel, 1 + step) - squared_norm(channel, 1 - step)
        assert float(found[channel]) == pytest.approx(slope / (4 * step), rel=1e-4)
