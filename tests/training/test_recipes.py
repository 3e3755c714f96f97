"""A recipe is followed as a plain loop would; images and chance are the same on every device."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from training.datasets.catalogue import DATASETS, load
from training.zoo.families import FAMILIES
from training.zoo.recipes import Recipe, augmented, follow, memory_layout
from training.zoo.skeletons import NetworkShape
from training.zoo.specs import NetworkSpec, build, train

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
SPEC = NetworkSpec(
    name="tiny",
    family="residual",
    dataset="digits",
    width=16,
    depth=1,
    activation="silu",
    recipe=Recipe(epochs=3, learning_rate=0.05, label_smoothing=0.1, batch_size=32),
    train_images=100,
    seed=0,
)


def slow_follow(model: nn.Module, recipe: Recipe, generator: torch.Generator) -> float:
    """Train in loops on the digits, one rate after the other, in the usual memory layout."""
    data, info = load("digits", "train", limit=SPEC.train_images), DATASETS["digits"]
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1.0, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay
    )
    steps, step = recipe.epochs * 4, 0
    for _ in range(recipe.epochs):
        order = torch.randperm(len(data), generator=generator)
        losses = []
        for start in range(0, len(data), recipe.batch_size):
            rows = order[start : start + recipe.batch_size]
            pixels = augmented(data.images[rows], mirror=False, generator=generator)
            inputs = (pixels.contiguous() / 255 - info.mean[0]) / info.std[0]
            share = step / steps
            rate = 0.05 + 0.95 * share / 0.2
            if share >= 0.2:
                rate = 0.5 * (1 + torch.tensor(torch.pi * (share - 0.2) / 0.8).cos().item())
            optimizer.param_groups[0]["lr"] = recipe.learning_rate * rate
            optimizer.zero_grad()
            logs = F.log_softmax(model(inputs), dim=1)
            right = logs[torch.arange(len(rows)), data.labels[rows]]
            loss = -(0.9 * right + 0.1 * logs.mean(1)).mean()
            torch.autograd.backward(loss)
            size = (
                sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None)
                ** 0.5
            )
            for p in model.parameters():
                p.grad *= min(1.0, 5.0 / size)
            optimizer.step()
            losses += [loss.item()] * len(rows)
            step += 1
    return sum(losses) / len(losses)


def test_a_recipe_is_followed_as_in_plain_loops() -> None:
    fast, slow = build(SPEC), build(SPEC).train()
    data = load("digits", "train", limit=SPEC.train_images)
    chance = torch.Generator().manual_seed(5)
    assert memory_layout(fast) == torch.channels_last
    nats, _ = follow(SPEC.recipe, fast, data, DATASETS["digits"], name="tiny", generator=chance)
    expected = slow_follow(slow, SPEC.recipe, torch.Generator().manual_seed(5))
    assert nats == pytest.approx(expected, rel=1e-3)
    for name, tensor in slow.state_dict().items():
        assert torch.allclose(fast.state_dict()[name], tensor, rtol=0.02, atol=2e-3), name
        assert fast.state_dict()[name].is_contiguous()


@pytest.mark.parametrize(
    ("family", "width", "safe"),
    [
        ("residual", 8, False),
        ("residual", 16, True),
        ("preact", 12, False),
        ("regnet", 12, False),
        ("option_a", 8, True),
        ("mobile", 8, True),
        ("convnext", 8, True),
    ],
)
def test_channels_come_last_only_where_the_cpu_can_do_that(
    family: str, width: int, safe: bool
) -> None:
    """Strided 1x1 convolutions of fewer than 16 channels corrupt memory in that layout."""
    model = FAMILIES[family](NetworkShape(3, 10, 32, width, 1))
    assert memory_layout(model) == (torch.channels_last if safe else torch.contiguous_format)


@needs_gpu
def test_a_gpu_draws_the_same_images() -> None:
    pixels = torch.arange(5 * 3 * 64, dtype=torch.uint8).view(5, 3, 8, 8)
    here, there = (
        augmented(pixels.to(device), mirror=True, generator=torch.Generator().manual_seed(1))
        for device in ("cpu", "cuda")
    )
    assert torch.equal(here, there.cpu())


@needs_gpu
def test_a_gpu_trains_the_same_network_up_to_rounding() -> None:
    model, summary = train(SPEC, device="cuda")
    _, expected = train(SPEC, device="cpu")
    assert summary.train_loss_nats == pytest.approx(expected.train_loss_nats, rel=0.1)
    assert next(model.parameters()).device.type == "cpu"
    assert all(tensor.dtype != torch.bfloat16 for tensor in model.state_dict().values())


def test_maps_of_one_channel_do_not_bring_in_the_layout_that_a_network_must_not_have() -> None:
    narrow = replace(SPEC, width=6)
    model, info = build(narrow), DATASETS["digits"]
    assert memory_layout(model) == torch.contiguous_format
    seen: list[bool] = []
    model.get_submodule("stages.1.0.shortcut.conv").register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].is_contiguous())
    )
    chance = torch.Generator().manual_seed(0)
    brief = replace(SPEC.recipe, epochs=1)
    # Forward alone would do; without the gradient of that convolution nothing can go wrong here.
    model.get_submodule("stages.1.0.shortcut.conv").requires_grad_(False)
    follow(brief, model, load("digits", "train", limit=32), info, name="x", generator=chance)
    assert seen == [True]
