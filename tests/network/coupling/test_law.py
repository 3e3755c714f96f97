"""The law sees what is coupled, however little it shows, in every type that networks compute in."""

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from selector.network.coupling.law import difference, exact_arithmetic, judging
from selector.network.tracing import find_groups
from selector.oracle.oracle import loss_changes
from selector.pruning.prune import prune
from tests.networks import data, randomise, small, state_of


class Gated(nn.Module):
    """Two layers of one width that are multiplied, where autograd sees one of them alone."""

    def __init__(self, hide: str) -> None:
        super().__init__()
        self.hide = hide
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 3, padding=1)
        self.after, self.side = nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 3)
        self.head = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        gate = torch.sigmoid(self.b(images))
        hidden = gate.detach() if self.hide == "detach" else torch.tensor(gate.tolist()).to(gate)
        maps = torch.relu(self.a(images)) * hidden
        return self.head(torch.relu(self.after(maps) + self.side(gate)).mean((2, 3)))


def test_layers_coupled_behind_pytorchs_back_are_refused() -> None:
    model = randomise(Gated("list").double()).eval()
    groups = find_groups(model, data()[0][0])
    assert {"a", "b"} <= groups.refused.keys()
    assert "after" in groups.prunable


def test_layers_coupled_behind_autograds_back_go_together() -> None:
    model = randomise(Gated("detach").double()).eval()
    groups = find_groups(model, data()[0][0])
    assert groups.prunable["a"].producers == ("a", "b")


class Scaled(nn.Module):
    """A residual branch that adds next to nothing, in which a channel depends on all others."""

    def __init__(self, size: float, *, mixed: bool) -> None:
        super().__init__()
        self.size, self.mixed = size, mixed
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.wide, self.narrow = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.stem(images))
        branch = torch.relu(self.wide(x))
        if self.mixed:
            branch = branch / branch.mean(1, keepdim=True)
        return self.head((x + self.size * self.narrow(branch)).mean((2, 3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-6])
def test_a_small_branch_hides_no_error(size: float, dtype: torch.dtype) -> None:
    images = data(dtype=dtype)[0][0]
    broken = find_groups(randomise(Scaled(size, mixed=True).to(dtype)).eval(), images)
    assert "mean over all of them" in broken.refused["wide"]
    sound = find_groups(randomise(Scaled(size, mixed=False).to(dtype)).eval(), images)
    assert {"stem", "wide"} <= sound.prunable.keys()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_of_16_bits_is_no_fault_of_a_group(dtype: torch.dtype) -> None:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5))
    model, batches = randomise(net).to(dtype).eval(), data(dtype=dtype)
    before = state_of_16(model)
    assert list(find_groups(model, batches[0][0]).prunable) == ["0", "3", "6", "9"]
    assert state_of_16(model) == before
    assert prune(model, batches, ratio=0.3, criterion="l1", rounds=1).plan.choices


def state_of_16(model: nn.Module) -> list[tuple[str, int, bytes]]:
    tensors = model.state_dict(keep_vars=True).items()
    return [(n, t.data_ptr(), t.detach().float().numpy().tobytes()) for n, t in tensors]


class FixedType(nn.Module):
    """A forward pass that runs in one type, whatever the inputs."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.dtype = inner, dtype

    def forward(self, images: Tensor) -> Tensor:
        if self.inner.stem.weight.dtype != self.dtype:
            raise TypeError("the kernels of this network are written for one type")
        return self.inner(images.to(self.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_network_of_one_type_is_judged_in_it(dtype: torch.dtype) -> None:
    model = FixedType(small("residual", 6, norm=True).to(dtype), dtype)
    images = data(dtype=torch.float32)[0][0]
    with judging(model, images) as judge:
        assert judge.noise == pytest.approx(
            {torch.float32: 1e-5, torch.bfloat16: 0.125, torch.float64: 1e-10}[dtype]
        )
    assert {"inner.stem", "inner.inner"} == find_groups(model, images).prunable.keys()


class AutocastInside(nn.Module):
    """A forward pass under autocast."""

    def __init__(self, *, cached: bool | None) -> None:
        super().__init__()
        self.inner, self.cached = small("plain", 6, norm=True).float(), cached

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=self.cached):
            return self.inner(images).float()


@pytest.mark.parametrize("cached", [None, True, False])
def test_networks_that_autocast_inside_keep_their_groups(cached: bool | None) -> None:
    batches = data(16, 8, dtype=torch.float32)
    model = AutocastInside(cached=cached)
    assert {"inner.stem", "inner.next"} == find_groups(model, batches[0][0]).prunable.keys()
    (cast,) = loss_changes(model, batches, "inner.stem", [[0, 1]], engine="masked")
    (plain,) = loss_changes(model.inner, batches, "stem", [[0, 1]])
    assert abs(plain.nats) > 0.05
    assert cast.nats == pytest.approx(plain.nats, abs=0.03)


@pytest.mark.parametrize("engine", ["fast", "masked", "reference"])
def test_autocast_around_the_oracle_hides_nothing(engine: str) -> None:
    model, batches = small("residual", 6, norm=True).float(), data(16, 8, dtype=torch.float32)
    sets = [[0], [1, 2], [3, 4]]
    plain = loss_changes(model, batches, "stem", sets)
    with torch.autocast("cpu", torch.bfloat16):
        cast = loss_changes(model, batches, "stem", sets, engine=engine)  # type: ignore[arg-type]
    for one, other in zip(plain, cast, strict=True):
        assert other.nats == pytest.approx(one.nats, abs=0.03)
    assert max(abs(change.nats) for change in cast) > 0.05


@dataclass
class Output:
    logits: Tensor
    more: dict[str, list[Tensor]]


class Boxed:
    """An object that PyTorch knows nothing of."""

    def __init__(self, values: Tensor) -> None:
        self.values = values


class Structured(nn.Module):
    """Two layers, coupled in a part of the outputs that is well wrapped."""

    def __init__(self, wrap: str) -> None:
        super().__init__()
        self.wrap = wrap
        self.stem, self.next, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 1), nn.Linear(6, 5)

    def forward(self, images: Tensor) -> object:
        x = torch.relu(self.stem(images))
        mixed = functional.normalize(x, dim=1).detach()
        logits = self.head(torch.relu(self.next(x)).mean((2, 3)))
        seen = self.next(mixed).detach().mean((1, 2, 3))
        if self.wrap == "dataclass":
            return Output(logits, {"seen": [seen]})
        if self.wrap == "object":
            return logits, Boxed(seen)
        return {"logits": logits, "seen": torch.complex(torch.zeros_like(seen), seen)}


@pytest.mark.parametrize("wrap", ["dataclass", "object", "complex"])
def test_all_outputs_count_wherever_they_are(wrap: str) -> None:
    groups = find_groups(randomise(Structured(wrap).double()).eval(), data()[0][0])
    assert "linalg_vector_norm over all of them" in groups.refused["stem"]
    assert "next" in groups.refused, "the mean over its channels is an output"


def test_differences_are_relative_to_what_changes() -> None:
    whole, expected = [torch.ones(2)], [torch.tensor([1.0, 1.0 + 1e-6])]
    near, far = [expected[0] + 1e-12], [torch.ones(2)]
    assert difference(whole, expected, near, noise=1e-10) is None
    assert "differ by" in str(difference(whole, expected, far, noise=1e-10))
    assert "shape" in str(difference(whole, expected, [torch.ones(3)], noise=1e-10))
    assert "differ" in str(difference(whole, expected, [expected[0] * torch.nan], noise=1e-10))


class Secret(nn.Module):
    """A mean that PyTorch does not see."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.ones(x.shape, dtype=x.dtype)
        hidden.numpy()[:] = np.exp(x.detach().numpy()).mean(1, keepdims=True)
        return x * hidden


def test_one_shared_layer_that_breaks_the_law_is_found_by_halving() -> None:
    calls: list[int] = []
    layers: list[nn.Module] = []
    for _ in range(24):
        layers += [nn.Linear(6, 6), nn.Tanh()]
    layers[21] = Secret()
    model = randomise(nn.Sequential(*layers, nn.Linear(6, 5)).double()).eval()
    model.register_forward_hook(lambda *_: calls.append(1))
    groups = find_groups(model, torch.ones(4, 6, dtype=torch.float64))
    assert "differ" in groups.refused["20"]
    assert len(groups.prunable) == 23
    assert len(calls) < 80


def test_judging_leaves_the_network_as_found() -> None:
    model = small("residual", norm=True).float()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before = state_of(model)
    with judging(model, data(dtype=torch.float32)[0][0]) as judge:
        assert model.stem.weight.dtype == torch.float64
        assert judge.noise == 1e-10
    assert state_of(model) == before


def kinds() -> list[Any]:
    backends: Any = torch.backends
    return [backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul]


def settings() -> list[str]:
    return [kind.fp32_precision for kind in kinds()]


@pytest.mark.parametrize("how", ["older", "newer"])
def test_settings_of_arithmetic_come_back_whichever_thread_leaves_last(how: str) -> None:
    if not hasattr(torch.backends.cudnn, "conv"):
        pytest.skip("this version has the older settings only")
    model, inside, kept = nn.Linear(1, 1), threading.Barrier(2, timeout=20), settings()
    seen: list[list[str]] = []
    try:
        if how == "older":
            torch.set_float32_matmul_precision("medium")
        else:
            torch.backends.cuda.matmul.fp32_precision = "tf32"
        before = settings()

        def work(first: bool) -> None:
            with exact_arithmetic(model):
                inside.wait()
                seen.append(settings())
                if first:
                    inside.wait()
            if not first:
                inside.wait()

        threads = [threading.Thread(target=work, args=(first,)) for first in (True, False)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == [["ieee"] * 3] * 2
        assert settings() == before
        assert "tf32" in before
        assert find_groups(small("plain"), data()[0][0]).prunable
        assert settings() == before
    finally:
        for kind, value in zip(kinds(), kept, strict=True):
            kind.fp32_precision = value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_network_that_was_just_trained_keeps_its_gradients(dtype: torch.dtype) -> None:
    model = small("residual", 8, norm=True).to(dtype)
    images, labels = data()[0]
    expected = find_groups(model, images.to(dtype)).prunable.keys()
    functional.cross_entropy(model(images.to(dtype)), labels).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    assert find_groups(model, images.to(dtype)).prunable.keys() == expected
    for name, parameter in model.named_parameters():
        assert parameter.grad is gradients[name]
    assert prune(model, [(images.to(dtype), labels)], ratio=0.4, criterion="l1").plan.choices
