"""Networks that others cannot copy, read or call, and those that are told what is wrong."""

import copy

import pytest
import torch
from torch import Tensor, nn

import selector
from selector.errors import SelectorError
from selector.network.copying import copy_of, uncompiled
from selector.network.tracing import find_groups
from selector.oracle.oracle import loss_changes
from selector.pruning.prune import prune
from selector.repair.correspondence import kept_after_history
from tests.networks import data, small, state_of


class Keeping(nn.Module):
    """A network that keeps what it has computed, in some place."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.inner, self.where = small("plain", 6, norm=True), where
        self.kept: dict[str, list[object]] = {"all": []}

    def forward(self, images: Tensor) -> Tensor:
        outputs = self.inner(images)
        if self.where == "attribute":
            self.last = outputs
        elif self.where == "list":
            self.kept["all"] = [outputs, (outputs * 2,)]
        elif self.where == "child":
            self.inner.stem.seen = outputs
        elif self.where == "buffer":
            self.inner._buffers["seen"] = outputs
        return outputs


@pytest.mark.parametrize("where", ["attribute", "list", "child", "buffer"])
def test_a_network_that_keeps_an_activation_is_copied_and_pruned(where: str) -> None:
    model, batches = Keeping(where).eval(), data()
    outputs = model(batches[0][0])
    assert outputs.grad_fn is not None
    twin = copy_of(model)
    if where == "list":
        kept, ((double,),) = twin.kept["all"][0], twin.kept["all"][1:]
        assert torch.equal(kept, outputs)
        assert torch.equal(double, 2 * outputs)
        assert not kept.requires_grad
    assert torch.equal(twin(batches[0][0]), outputs)
    result = prune(model, batches, ratio=0.5, rounds=2, criterion="fisher")
    assert result.model.inner.stem.out_channels == 3
    assert model.inner.stem.out_channels == 6


@pytest.mark.parametrize("where", ["attribute", "list", "child"])
def test_a_network_that_keeps_an_activation_is_distilled(where: str) -> None:
    model, batches = Keeping(where).float().eval(), [(images.float(), y) for images, y in data()]
    pruned = prune(model, batches, ratio=0.5, rounds=1, criterion="l1", repair=False).model
    inputs = batches[0][0]
    assert model(inputs).grad_fn is not None
    assert pruned(inputs).grad_fn is not None
    report = selector.distil(model, pruned, batches, passes=2).report
    plain = selector.distil(model.inner, pruned.inner, batches, passes=2).report
    assert report.divergence_before == plain.divergence_before
    kept = kept_after_history(model, [], inputs)
    assert kept["inner.stem"] == tuple(range(6))


def test_a_copy_shares_nothing_and_keeps_ties() -> None:
    model = small("two_consumers", norm=True)
    model.second.bias = model.first.bias
    twin = copy_of(model)
    assert twin.second.bias is twin.first.bias
    tensors = {t.data_ptr() for t in model.state_dict().values()}
    assert tensors.isdisjoint(t.data_ptr() for t in twin.state_dict().values())


@pytest.mark.parametrize("how", ["whole", "part", "in place"])
def test_compiled_networks_are_measured_as_they_were_written(how: str) -> None:
    plain, batches = small("residual", 6, norm=True), data()
    model = copy.deepcopy(plain)
    if how == "whole":
        model = torch.compile(model, backend="eager")  # type: ignore[assignment]
    elif how == "part":
        model.add_module("act", torch.compile(model.act, backend="eager"))
    else:
        model.compile(backend="eager")
    with torch.no_grad():
        model(batches[0][0])
    assert type(uncompiled(model)) is type(plain)
    before = find_groups(plain, batches[0][0])
    assert find_groups(model, batches[0][0]).prunable == before.prunable
    engine = {"engine": "masked"}
    changes = loss_changes(model, batches, "stem", [[0, 2]], **engine)  # type: ignore[arg-type]
    assert changes == loss_changes(plain, batches, "stem", [[0, 2]], **engine)  # type: ignore[arg-type]
    options = {"ratio": 0.5, "rounds": 2, "criterion": "fisher"}
    result, expected = (prune(m, batches, **options) for m in (model, plain))  # type: ignore[arg-type]
    assert result.plan.removals == expected.plan.removals
    assert result.model.stem.out_channels == 3


def test_weights_without_values_are_named() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with pytest.raises(SelectorError, match=r"'0.weight' has no values \(device 'meta'\)"):
        find_groups(model, torch.ones(2, 3, 8, 8))


def test_weights_of_inference_mode_are_named() -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with pytest.raises(SelectorError, match=r"'0.weight' was made under torch.inference_mode"):
        find_groups(model, torch.ones(2, 3, 8, 8))


def test_inference_mode_around_the_call_changes_nothing() -> None:
    model, images = small("plain"), data()[0][0]
    expected = find_groups(model, images)
    with torch.inference_mode():
        inside = images * 1
        assert find_groups(model, inside).prunable == expected.prunable


class Extra(nn.Module):
    """A network whose state is not tensors alone."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.seen = small("plain", 6).float(), {"epochs": 3}

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images)

    def get_extra_state(self) -> object:
        return self.seen

    def set_extra_state(self, state: object) -> None:
        assert isinstance(state, dict)
        self.seen = state


def test_extra_state_is_saved_and_read_again(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model, batches = Extra(), data(dtype=torch.float32)
    result = prune(
        model, batches, ratio=0.5, rounds=2, criterion="l1", finetune=lambda net, number: None
    ).model
    result.set_extra_state({"epochs": 7, "best": [0.5, None]})
    selector.save_pruned(result, tmp_path / "small.safetensors")
    loaded = selector.load_pruned(Extra, tmp_path / "small.safetensors")
    assert loaded.seen == result.seen
    assert torch.equal(loaded(batches[0][0]), result(batches[0][0]))


def test_extra_state_that_cannot_be_written_is_named(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = Extra()
    model.seen = {"object": object()}  # type: ignore[dict-item]
    with pytest.raises(SelectorError, match=r"extra state .* cannot be written"):
        selector.save_pruned(model, tmp_path / "small.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_finding_leaves_a_keeping_network_usable() -> None:
    model, images = Keeping("attribute").eval(), data()[0][0]
    before = state_of(model.inner)
    find_groups(model, images)
    assert state_of(model.inner) == before
