"""Every family builds, learns and is the same again from its seed; a bad spec names its culprit."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from selector.errors import SelectorError
from training.datasets.catalogue import DATASETS
from training.zoo.blocks import ACTIVATIONS
from training.zoo.catalogue import FIRST_ZOO
from training.zoo.families import FAMILIES
from training.zoo.recipes import Recipe, augmented
from training.zoo.sampling import sample_zoo
from training.zoo.skeletons import NetworkShape
from training.zoo.specs import NetworkSpec, build, fingerprint, train

TINY = NetworkSpec(
    name="tiny",
    family="plain_bn",
    dataset="digits",
    width=8,
    depth=1,
    activation="relu",
    recipe=Recipe(epochs=12, learning_rate=0.1, batch_size=32),
    train_images=800,
    seed=0,
)
BRIEF = replace(TINY, train_images=64, recipe=Recipe(epochs=2, learning_rate=0.05))


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32)])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_runs_forward_and_backward(family: str, channels: int, size: int) -> None:
    shape = NetworkShape(channels, 7, size, width=4, depth=2, activation="silu")
    model = FAMILIES[family](shape)
    images = torch.randn(4, channels, size, size, generator=torch.Generator().manual_seed(0))
    outputs = model(images)
    assert outputs.shape == (4, 7)
    torch.autograd.backward(F.cross_entropy(outputs, torch.tensor([0, 1, 2, 3])))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("size", "stages"), [(8, 2), (16, 2), (28, 3), (32, 3), (64, 4)])
def test_larger_images_get_more_stages(size: int, stages: int) -> None:
    shape = NetworkShape(3, 10, size, width=4, depth=1)
    assert shape.widths == tuple(4 * 2**stage for stage in range(stages))


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_works_in_place(family: str) -> None:
    model = FAMILIES[family](NetworkShape(1, 10, 8, width=4, depth=1, activation="leaky_relu"))
    assert not any(getattr(module, "inplace", False) for module in model.modules())


@pytest.mark.parametrize("spec", FIRST_ZOO, ids=lambda spec: spec.name)
def test_every_network_of_the_zoo_builds(spec: NetworkSpec) -> None:
    model = build(spec).eval()
    shape = DATASETS[spec.dataset].shape
    assert model(torch.zeros(1, *shape)).shape == (1, DATASETS[spec.dataset].classes)


def test_the_first_zoo_covers_ten_families_and_all_activations_under_distinct_names() -> None:
    assert {spec.family for spec in FIRST_ZOO} == set(list(FAMILIES)[:10])
    assert {spec.activation for spec in FIRST_ZOO} == set(ACTIVATIONS)
    assert len({spec.name for spec in FIRST_ZOO}) == len(FIRST_ZOO) == 18


def test_the_first_zoo_stays_what_its_records_were_measured_on() -> None:
    """Stable values: weights and records on disk are found and loaded by them."""
    prints = " ".join(fingerprint(spec) for spec in FIRST_ZOO)
    assert hashlib.sha256(prints.encode()).hexdigest()[:12] == "a39b69d58757"
    states = [build(spec).state_dict() for spec in FIRST_ZOO]
    layers = json.dumps([[name, list(t.shape)] for state in states for name, t in state.items()])
    assert hashlib.sha256(layers.encode()).hexdigest()[:12] == "4781ed799f6f"


def test_images_for_the_oracle_are_kept_from_training() -> None:
    for spec in (*FIRST_ZOO, *sample_zoo(150, 1)):
        assert spec.train_images <= DATASETS[spec.dataset].train_images
    with pytest.raises(SelectorError, match="tiny: 801 training images; digits has 1 to 800 for"):
        train(replace(BRIEF, train_images=801))


def test_a_tiny_network_learns_the_digits() -> None:
    model, summary = train(TINY)
    assert summary.name == "tiny"
    assert summary.test_accuracy > 0.9
    assert 0 < summary.train_loss_nats < 0.5
    assert summary.seconds > 0
    assert not model.training


def test_the_same_seed_gives_the_same_network_whatever_happened_before() -> None:
    first, summary = train(BRIEF)
    torch.rand(3)
    second, again = train(BRIEF)
    assert replace(summary, seconds=0) == replace(again, seconds=0)
    for (name, one), two in zip(
        first.state_dict().items(), second.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), name
    other, _ = train(BRIEF, generator=torch.Generator().manual_seed(7))
    assert not torch.equal(
        other.get_parameter("head.linear.weight"), first.get_parameter("head.linear.weight")
    )


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    weights = build(TINY).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    other = build(replace(TINY, seed=1)).state_dict()
    assert not torch.equal(weights["head.linear.weight"], other["head.linear.weight"])


def test_augmentation_shifts_and_mirrors_whole_images() -> None:
    chance = torch.Generator().manual_seed(0)
    image = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)
    many = augmented(image.expand(200, 1, 8, 8), mirror=True, generator=chance)
    padded = F.pad(image.float(), (1, 1, 1, 1), mode="reflect")
    shifts = [padded[:, :, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    allowed = torch.cat(shifts + [shift.flip(3) for shift in shifts])
    matches = (many[:, None] == allowed[None]).flatten(2).all(2)
    assert matches.any(1).all()
    assert matches.any(0).all()
    still = augmented(image.expand(200, 1, 8, 8), mirror=False, generator=chance)
    matches = (still[:, None] == allowed[None, :9]).flatten(2).all(2)
    assert matches.any(1).all()


def test_fingerprints_follow_every_field() -> None:
    assert fingerprint(TINY) == fingerprint(replace(TINY))
    variants = [
        replace(TINY, seed=1),
        replace(TINY, activation="gelu"),
        replace(TINY, recipe=replace(TINY.recipe, epochs=13)),
    ]
    assert len({fingerprint(spec) for spec in [TINY, *variants]}) == 4
    # A stable value: campaigns resume across processes and versions by it.
    assert fingerprint(TINY) == "40a96432a5ca"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (replace(BRIEF, family="vgg"), "tiny: unknown family 'vgg'; known: plain, "),
        (replace(BRIEF, dataset="mnist"), "tiny: unknown data set 'mnist'; known: cifar10, "),
        (replace(BRIEF, activation="tanh"), "tiny: unknown activation 'tanh'; known: relu, "),
        (replace(BRIEF, width=0), "tiny: width 0 and depth 1 must both be at least 1"),
        (
            replace(BRIEF, recipe=Recipe(epochs=1, learning_rate=0.1, optimizer="lion")),
            "tiny: unknown optimizer 'lion'; known: sgd, adamw",
        ),
        (
            replace(BRIEF, recipe=Recipe(epochs=0, learning_rate=0.1)),
            "tiny: epochs is 0; it must be at least 1",
        ),
        (
            replace(BRIEF, family="plain", recipe=Recipe(epochs=2, learning_rate=1e30)),
            "tiny: the loss became (nan|inf) in epoch .; lower its learning rate",
        ),
    ],
)
def test_a_bad_spec_names_its_culprit(spec: NetworkSpec, message: str) -> None:
    with pytest.raises(SelectorError, match=message):
        train(spec)
