"""Whatever a caller can get wrong is a SelectorError that names the culprit and the way out."""

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from selector.data.loss import evaluate
from selector.errors import SelectorError
from selector.learning.selector import SaliencySelector
from selector.network.checkpoint import load_pruned, load_tensors, read_tensors, save_pruned
from selector.network.tracing import find_groups
from selector.oracle.oracle import loss_changes
from selector.planning.choose import choose
from selector.planning.plan import Plan
from selector.pruning.apply import apply_plan
from selector.pruning.prune import prune
from selector.saliency.registry import METRICS, register_metric
from selector.saliency.scoring import score
from selector.statistics.channel_statistics import Signals
from tests.networks import data, randomise, small, state_of


def refused(action: Callable[[], object], *parts: str) -> None:
    """The action must fail with one error whose message has all the parts, in this order."""
    with pytest.raises(SelectorError) as caught:
        action()
    assert re.search(".*".join(map(re.escape, parts)), str(caught.value), re.DOTALL), caught.value


@pytest.fixture
def model() -> Iterator[nn.Module]:
    """A network that every one of these errors must leave alone."""
    found = small("plain", norm=True).train()
    before = state_of(found)
    yield found
    assert state_of(found) == before


def by_l1(model: nn.Module, **options: object) -> Callable[[], object]:
    return lambda: prune(model, data(), criterion="l1", **options)  # type: ignore[arg-type]


def test_an_unknown_metric(model: nn.Module) -> None:
    refused(lambda: score(model, data(), ["tailor"]), "unknown metric 'tailor'", *METRICS)


def test_an_unknown_criterion(model: nn.Module) -> None:
    parts = ("unknown criterion 'tailor'", "selector, oracle", *METRICS)
    refused(lambda: prune(model, data(), criterion="tailor", ratio=0.5), *parts)
    refused(lambda: choose(model, data(), criterion="tailor", ratio=0.5), *parts)


def test_a_metric_that_a_group_cannot_have() -> None:
    bare = small("plain")
    refused(
        lambda: score(bare, data(), ["l1", "batchnorm_scale"]),
        "metric 'batchnorm_scale' needs normalisation",
        "group 'stem'",
        "leave the metric out",
    )
    refused(
        lambda: choose(bare, data(), criterion="batchnorm_scale", ratio=0.5),
        "metric 'batchnorm_scale'",
        "group 'stem'",
        "name the group in ignore",
    )


def test_an_unknown_group(model: nn.Module) -> None:
    refused(
        lambda: loss_changes(model, data(), "steam", [[0]]),
        "unknown group 'steam'",
        "known: stem, next",
    )
    refused(by_l1(model, ratio=0.5, ignore=["steam"]), "ignore names 'steam'", "known: stem, next")


def test_targets_none_two_or_unknown(model: nn.Module) -> None:
    known = "keep_macs, keep_params, keep_weights, keep_latency, ratio"
    refused(by_l1(model), "give exactly one target", known, "got none")
    refused(
        by_l1(model, ratio=0.5, keep_macs=0.5),
        "exactly one target",
        known,
        "ratio and keep_macs",
    )
    refused(by_l1(model, keep_mac=0.5), "unknown target 'keep_mac'", "known", known)


@pytest.mark.parametrize("value", [0, 1, -0.1, 1.5, float("nan"), "0.5", None, 50])
@pytest.mark.parametrize("target", ["keep_macs", "keep_params", "keep_weights", "ratio"])
def test_a_share_outside_zero_and_one(model: nn.Module, target: str, value: object) -> None:
    share = "a share removed" if target == "ratio" else "a share kept"
    refused(by_l1(model, **{target: value}), f"{target}={value!r}", share, "between 0 and 1")
    refused(
        lambda: choose(model, data(), criterion="l1", **{target: value}),  # type: ignore[arg-type]
        f"{target}={value!r}",
        "between 0 and 1",
    )


@pytest.mark.parametrize("value", [0, 1, -0.1, 1.5])
def test_max_ratio_out_of_range(model: nn.Module, value: float) -> None:
    refused(by_l1(model, ratio=0.5, max_ratio=value), f"max_ratio={value!r}", "between 0 and 1")


@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_counts_out_of_range(model: nn.Module, value: float) -> None:
    refused(by_l1(model, ratio=0.5, round_to=value), f"round_to={value!r}", "1 or more")
    refused(by_l1(model, ratio=0.5, rounds=value), f"rounds={value!r}", "1 or more")


@pytest.mark.parametrize("value", [-1, 1.5, "some"])
def test_verify_out_of_range(model: nn.Module, value: object) -> None:
    refused(
        lambda: prune(model, data(), verify=value, ratio=0.5),  # type: ignore[arg-type]
        f"verify={value!r}",
        "0, 1, 2, ... or 'all'",
    )


def test_verify_with_one_metric(model: nn.Module) -> None:
    refused(
        by_l1(model, ratio=0.5, verify=2),
        "verify=2",
        "criterion 'l1' has one",
        "criterion='selector', or verify=0",
    )


def test_a_target_that_cannot_be_reached(model: nn.Module) -> None:
    refused(by_l1(model, keep_params=0.001), "keeping 0.1% of the parameters", "raise max_ratio")
    refused(
        by_l1(model, keep_macs=0.1, ignore=["next"]),
        "keeping 10.0% of the macs",
        "at the least",
        "ignore fewer groups",
    )


READERS: list[Callable[[nn.Module, object], object]] = [
    lambda model, batches: score(model, batches),  # type: ignore[arg-type]
    lambda model, batches: loss_changes(model, batches, "stem", [[0]]),  # type: ignore[arg-type]
    lambda model, batches: evaluate(model, batches),  # type: ignore[arg-type]
    lambda model, batches: choose(model, batches, criterion="taylor", ratio=0.5),  # type: ignore[arg-type]
    lambda model, batches: prune(model, batches, criterion="l1", ratio=0.5),  # type: ignore[arg-type]
]
NAMES = ["score", "loss_changes", "evaluate", "choose", "prune"]
every_reader = pytest.mark.parametrize("reader", READERS, ids=NAMES)


@every_reader
def test_empty_batches(model: nn.Module, reader: Callable[..., object]) -> None:
    refused(lambda: reader(model, []), "batches are empty", "pass at least one batch")


@every_reader
def test_batches_that_can_be_read_once(model: nn.Module, reader: Callable[..., object]) -> None:
    one_shot = (batch for batch in data())
    refused(lambda: reader(model, one_shot), "only once (a generator)", "DataLoader or list")
    refused(lambda: reader(model, iter(data())), "only once (a list_iterator)", "list(batches)")


@every_reader
def test_batches_that_are_no_batches(model: nn.Module, reader: Callable[..., object]) -> None:
    refused(lambda: reader(model, 5), "not int", "pass a DataLoader or a list")
    images, labels = data()[0]
    refused(lambda: reader(model, [images]), "must be a pair (inputs, targets), not a Tensor")
    refused(lambda: reader(model, [(images, labels, labels)]), "a pair", "not a tuple of 3")


class Shuffled:
    """Other images first on every reading."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        images = torch.cat([x for x, _ in data(24, 4)])
        labels = torch.cat([y for _, y in data(24, 4)])
        order = torch.randperm(24, generator=self.generator)
        return zip(images[order].split(4), labels[order].split(4), strict=True)


@pytest.mark.parametrize(
    "call",
    [
        lambda model: loss_changes(model, Shuffled(), "stem", [[0]]),
        lambda model: prune(model, Shuffled(), criterion="oracle", ratio=0.5),
        lambda model: choose(model, Shuffled(), criterion="oracle", ratio=0.5),
    ],
    ids=["loss_changes", "prune", "choose"],
)
def test_batches_that_shuffle(model: nn.Module, call: Callable[[nn.Module], object]) -> None:
    refused(lambda: call(model), "changed between two readings", "pass shuffle=False")


def test_the_oracle_needs_two_batches(model: nn.Module) -> None:
    refused(
        lambda: choose(model, data(4, 4), criterion="oracle", ratio=0.5),
        "verification by the oracle needs at least 2 batches",
        "not 1",
        "smaller batches, or more images",
    )


@pytest.mark.parametrize("label", [5, 17, -1])
@every_reader
def test_labels_outside_the_classes(
    model: nn.Module, reader: Callable[..., object], label: int
) -> None:
    batches = data()
    batches[1][1][2] = label
    if reader is READERS[3]:
        batches = batches[1:]
    refused(
        lambda: reader(model, batches),
        f"label {label} is outside the network's 5 classes (0 to 4)",
        "check the labels",
    )


@every_reader
def test_a_loss_that_is_no_number(model: nn.Module, reader: Callable[..., object]) -> None:
    batches = data()
    batches[1][0][2, 1, 0, 0] = float("nan")
    refused(lambda: reader(model, batches), "the loss is NaN on batch 1", "check the weights")


def test_an_infinite_loss(model: nn.Module) -> None:
    refused(
        lambda: score(model, data(), loss=lambda outputs, _: outputs.sum() * 0 + torch.inf),
        "the loss is infinite on batch 0",
        "normalisation of the inputs",
    )


def test_weights_that_are_no_numbers() -> None:
    broken = small("plain")
    broken.stem.weight.data[1] = float("nan")
    refused(
        lambda: find_groups(broken, data()[0][0]), "output of the network is NaN", "the weights"
    )
    refused(lambda: evaluate(broken, data()), "the loss is NaN on batch 0", "check the weights")


def test_labels_that_mean_ignore_this_one(model: nn.Module) -> None:
    batches = [(images, labels.clone()) for images, labels in data()]
    batches[0][1][0] = -100
    refused(lambda: evaluate(model, batches), "label -100 is outside", "classes (0 to")


def test_a_loss_that_is_not_one_number(model: nn.Module) -> None:
    refused(
        lambda: score(model, data(), loss=lambda outputs, _: outputs.sum(1)),
        "must return one number per batch, a mean",
    )


def test_a_loss_that_detaches(model: nn.Module) -> None:
    refused(
        lambda: score(model, data(), loss=lambda outputs, _: outputs.detach().mean()),
        "does not depend on the network's weights",
        "does not detach",
    )


def test_cross_entropy_of_what_has_none(model: nn.Module) -> None:
    batches = [(images, {"label": labels}) for images, labels in data()]
    refused(
        lambda: score(model, batches), "cross-entropy of logits", "loss=your_loss(outputs, targets)"
    )


def test_batches_without_targets(model: nn.Module) -> None:
    batches = [(images, None) for images, _ in data()]
    refused(lambda: score(model, batches), "hold no targets", "need no gradient")
    refused(lambda: evaluate(model, batches), "hold no targets", "needs labels")
    # What needs no loss needs no labels.
    expected = score(model, data(), ["apoz", "wanda", "l1"])
    for group, found in score(model, batches, ["apoz", "wanda", "l1"]).items():
        assert all(torch.equal(values, expected[group][name]) for name, values in found.items())


class TwoHeads(nn.Module):
    """A loss may look at one head and leave the other alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.side, self.tail = nn.Conv2d(4, 6, 3), nn.Conv2d(6, 2, 1)
        self.head = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = torch.relu(self.stem(images))
        side = self.tail(torch.relu(self.side(maps)))
        return self.head(torch.relu(self.left(maps)).mean((2, 3))), side


def test_a_loss_that_leaves_a_group_alone() -> None:
    model = randomise(TwoHeads().double()).eval()

    def of_the_first(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs[0], targets)

    refused(
        lambda: score(model, data(), ["taylor"], loss=of_the_first),
        "does not depend on group 'side'",
        "name it in ignore, ask for metrics that need no gradient",
    )
    found = score(model, data(), ["l1", "mean_activation"], loss=of_the_first)
    assert set(found) == {"stem", "left", "side"}


def test_a_score_that_is_not_finite(model: nn.Module) -> None:
    @register_metric("broken", needs="weights", arm=False)
    def broken(signals: Signals) -> Tensor:
        """A logarithm of nothing."""
        return (signals.weight * 0).sum(1).log()

    try:
        refused(
            lambda: score(model, data(), ["broken"]),
            "metric 'broken' gives a score that is not finite in group 'stem'",
        )
    finally:
        METRICS.pop("broken")


def test_inputs_of_another_shape(model: nn.Module) -> None:
    batches = [(images[:, :2], labels) for images, labels in data()]
    refused(
        lambda: score(model, batches), "does not run on the first batch", "check that the inputs"
    )


@pytest.mark.parametrize("reader", [READERS[2], READERS[4]], ids=["evaluate", "prune"])
def test_inputs_of_another_type(model: nn.Module, reader: Callable[..., object]) -> None:
    batches = [(images.long(), labels) for images, labels in data()]
    refused(lambda: reader(model, batches), "does not run on the first batch", "check that the")


def test_nothing_prunable() -> None:
    single = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).double()
    nothing = "the network has no prunable group of channels"
    reason = "1: no layer reads it: it is an output of the network"
    refused(lambda: score(single, data()), nothing, reason)
    refused(lambda: prune(single, data(), criterion="l1", ratio=0.5), nothing, reason)
    refused(lambda: loss_changes(single, data(), "1", [[0]]), nothing, reason)


def test_everything_ignored(model: nn.Module) -> None:
    refused(
        by_l1(model, ratio=0.5, ignore=["stem", "next"]), "no prunable group", "ignored, as asked"
    )


def test_no_layer_at_all() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(5, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)).sum(1, keepdim=True) * self.factor

    refused(lambda: score(Scaled(), data()), "no prunable group", "no convolution or linear layer")


def test_a_forward_pass_without_gradients() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small("plain")

        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    refused(lambda: score(Frozen(), data()), "", "under torch.no_grad or")


def test_plans_of_another_network(model: nn.Module) -> None:
    other = small("flatten")
    plan = choose(other, data(), criterion="l1", ratio=0.5)
    refused(lambda: apply_plan(model, plan, data()), "unknown group 'hidden'", "known: stem, next")
    wide = choose(small("plain", 8), data(), criterion="l1", ratio=0.9)
    refused(lambda: apply_plan(model, wide, data()), "group 'stem' has no channel", "0 to 3")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "not json", '{"choices": [{}]}', '{"choices": []}']
)
def test_what_is_no_plan(text: str) -> None:
    refused(lambda: Plan.from_json(text), "not a plan saved by to_json")


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    refused(lambda: Plan.load(tmp_path / "plan.json"), "plan.json cannot be read")


def test_tensors_that_do_not_fit(model: nn.Module) -> None:
    tensors = model.state_dict()
    extra = {**tensors, "tail.weight": torch.ones(2)}
    refused(lambda: load_tensors(model, extra, "x.file"), "x.file holds 'tail.weight'", "not have")
    lacking = {name: t for name, t in tensors.items() if name != "head.bias"}
    refused(lambda: load_tensors(model, lacking, "x.file"), "x.file lacks 'head.bias'", "needs")
    wide = {**tensors, "next.bias": torch.ones(7)}
    refused(
        lambda: load_tensors(model, wide, "x.file"),
        "x.file: 'next.bias' has shape (7,), the network's has (5,)",
        "another network",
    )


def test_pruned_networks_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    save_pruned(small("plain", 6), path)
    refused(
        lambda: load_pruned(lambda: small("plain", 4), path),
        "small.safetensors: layer 'stem' is saved with 6 'out' channels and built with 4",
        "build must make the network as it was before pruning",
    )
    refused(
        lambda: load_pruned(lambda: small("flatten", 6), path), "small.safetensors", "'next.bias'"
    )
    refused(
        lambda: load_pruned(lambda: small("plain", 6, norm=True), path),
        "small.safetensors holds 'stem.bias', which the network does not have",
    )


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\xff" * 64])
def test_files_that_are_no_tensors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    refused(lambda: read_tensors(path), "broken.safetensors cannot be read as safetensors")
    refused(lambda: load_pruned(lambda: small("plain"), path), "broken.safetensors cannot be read")
    refused(lambda: read_tensors(tmp_path / "no.file"), "no.file cannot be read")


def test_an_empty_tensor_file(tmp_path: Path) -> None:
    save_file({}, tmp_path / "empty.safetensors")
    refused(
        lambda: load_pruned(lambda: small("plain"), tmp_path / "empty.safetensors"),
        "empty.safetensors lacks 'stem.weight'",
    )


def test_a_selector_that_is_not_there(tmp_path: Path) -> None:
    refused(lambda: SaliencySelector.load(tmp_path / "none"), "none is not a saved selector")


def test_a_selector_that_has_not_learnt(model: nn.Module) -> None:
    refused(
        lambda: choose(model, data(), selector=SaliencySelector(), ratio=0.5),
        "has not learnt yet",
        "call fit(records) or load",
    )


def test_a_caller_s_own_error_is_not_ours(model: nn.Module) -> None:
    def broken(outputs: Tensor, targets: Tensor) -> Tensor:
        raise KeyError("mine")

    for call in (
        lambda: score(model, data(), loss=broken),
        lambda: loss_changes(model, data(), "stem", [[0]], loss=broken),
        lambda: prune(copy.deepcopy(model), data(), criterion="l1", ratio=0.5, loss=broken),
    ):
        with pytest.raises(KeyError, match="mine"):
            call()
