"""Distillation without labels: it imitates, never ends worse, repeats, goes on, and refuses."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import selector
from selector.errors import SelectorError
from selector.repair.distillation import training as distillation_training
from selector.repair.distillation.distil import distil
from selector.repair.distillation.report import DistillationReport
from selector.repair.distillation.state import DistillationState
from selector.repair.distillation.training import Budget, cycle
from tests.networks import data, small


def pair(norm: bool = True) -> tuple[nn.Module, nn.Module]:
    """A network, and a copy that has lost part of what it knew."""
    original = small("residual", 6, norm=norm).float()
    pruned = copy.deepcopy(original)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in pruned.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.3 * parameter.abs().mean() * noise)
    return original, pruned


def batches(count: int = 80, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    return data(count, 16, seed=seed, dtype=torch.float32)


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("norm", [False, True])
def test_it_comes_closer_and_leaves_both_networks_alone(norm: bool) -> None:
    original, pruned = pair(norm)
    before = values(original), values(pruned)
    distilled, report = distil(original, pruned, batches(), passes=15)
    assert report.divergence_after < 0.8 * report.divergence_before
    assert same(values(original), before[0])
    assert same(values(pruned), before[1])
    assert not same(values(distilled), before[1])
    assert all(p.grad is None for net in (original, pruned, distilled) for p in net.parameters())


@pytest.mark.parametrize("rate", [1e-7, 1e-2, 3.0, 1e4, 1e30])
@pytest.mark.parametrize("norm", [False, True])
def test_it_never_ends_worse_by_the_held_out_images(rate: float, norm: bool) -> None:
    original, pruned = pair(norm)
    images = batches()
    distilled, report = distil(original, pruned, images, passes=10, learning_rate=rate)
    assert report.divergence_after <= report.divergence_before
    # The values that came back are those that were reported, and they are finite.
    assert all(torch.isfinite(t).all() for t in distilled.state_dict().values())
    _, again = distil(original, distilled, images, passes=0.01, learning_rate=1e-12)
    assert again.divergence_before == pytest.approx(report.divergence_after, rel=1e-5)


def test_a_rate_that_breaks_the_network_is_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    original, pruned = pair(norm=False)
    monkeypatch.setattr(distillation_training, "_SLOWER", 1e-32)
    _, report = distil(original, pruned, batches(), passes=30, learning_rate=1e30)
    assert report.learning_rate < 0.1
    assert report.divergence_after < report.divergence_before


def test_the_same_seed_gives_the_same_weights_and_no_global_chance_is_used() -> None:
    original, pruned = pair()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, _ = distil(original, pruned, batches(), passes=2, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    again, _ = distil(original, pruned, batches(), passes=2, seed=1)
    other, _ = distil(original, pruned, batches(), passes=2, seed=2)
    assert same(values(first), values(again))
    assert not same(values(first), values(other))


def test_chance_in_the_callers_augmentation_is_seeded_too() -> None:
    original, pruned = pair()

    def noise(images: Tensor) -> Tensor:
        return images.add_(0.1 * torch.randn_like(images))

    images = batches()
    kept = images[0][0].clone()
    state = torch.get_rng_state()
    first, report = distil(original, pruned, images, passes=2, augment=noise)  # type: ignore[arg-type]
    again, _ = distil(original, pruned, images, passes=2, augment=noise)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), state)
    assert same(values(first), values(again))
    assert torch.equal(images[0][0], kept)
    assert report.augmentation == "noise"


def test_targets_are_ignored_and_batches_do_not_matter() -> None:
    original, pruned = pair()
    pairs = batches()
    whole = torch.cat([images for images, _ in pairs])
    results = [
        distil(original, pruned, images, passes=1)[0]
        for images in (pairs, [whole], iter(torch.split(whole, 7)), [(x, None) for x, _ in pairs])
    ]
    assert all(same(values(results[0]), values(other)) for other in results[1:])


class KilledError(Exception):
    """Stands for a process that ends."""


def test_an_interrupted_call_goes_on_to_the_same_result(tmp_path: Path) -> None:
    original, pruned = pair()
    calls, last = 0, 10**9

    def counting(_: nn.Module, __: object) -> None:
        nonlocal calls
        calls += 1
        if calls == last:
            raise KilledError

    # The copy that teaches carries this hook, too.
    handle = original.register_forward_pre_hook(counting)
    expected, report = distil(original, pruned, batches(), passes=10)
    folder, last, calls = tmp_path / "state", calls - 2, 0
    with pytest.raises(SelectorError, match="KilledError"):
        distil(original, pruned, batches(), passes=10, checkpoint=folder)
    handle.remove()
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".safetensors"]
    resumed, again = distil(original, pruned, batches(), passes=10, checkpoint=folder)
    assert same(values(expected), values(resumed))
    assert (again.best_step, again.divergence_after) == (report.best_step, report.divergence_after)
    # The finished state gives the result again, without training.
    finished, _ = distil(original, pruned, batches(), passes=10, checkpoint=folder)
    assert same(values(expected), values(finished))
    with pytest.raises(SelectorError, match="belongs to other networks, images or arguments"):
        distil(original, pruned, batches(), passes=11, checkpoint=folder)
    (folder / "state.json").write_text("{")
    with pytest.raises(SelectorError, match="damaged"):
        distil(original, pruned, batches(), passes=10, checkpoint=folder)


def test_minutes_are_kept_and_the_schedule_is_finished() -> None:
    original, pruned = pair()
    _, report = distil(original, pruned, batches(), minutes=1 / 60)
    assert 0.5 < report.seconds < 2
    assert report.steps > 10


@pytest.mark.parametrize("jitter", [0.0, 0.5])
@pytest.mark.parametrize("each", [0.01, 0.3, 2.0])
def test_a_budget_in_seconds_is_never_cut_short(each: float, jitter: float) -> None:
    run = DistillationState(rate=1.0, batchnorm="frozen", before=1.0, best=1.0)
    budget, phases = Budget(None, 10.0), []
    while run.phase < 1:
        run.step += 1
        # The first step is slow, and the machine has other work in the second half.
        slow = 5 if run.step == 1 else 1 + jitter * (run.seconds > 5)
        run.seconds += each * slow
        run.phase = budget.phase(run)
        phases.append(run.phase)
    assert phases == sorted(phases)
    assert run.seconds <= 10.0 or run.step == 1
    assert run.seconds >= 10.0 - 2.5 * each * (1 + jitter)
    assert cycle(1.0) < 0.01 < 1 - cycle(0.3) + 0.02


def test_frozen_parameters_and_ties_stay() -> None:
    original, pruned = pair()
    pruned.get_submodule("stem").requires_grad_(False)
    pruned.get_submodule("norm").requires_grad_(False)
    tied = pruned.get_parameter("inner.bias")
    pruned.get_submodule("head").register_parameter("twin", tied)
    distilled, _ = distil(original, pruned, batches(), passes=5, learning_rate=1e-2)
    before, after = values(pruned), values(distilled)
    frozen = [name for name in before if name.startswith(("stem", "norm"))]
    assert same({k: before[k] for k in frozen}, {k: after[k] for k in frozen})
    assert not torch.equal(before["inner.bias"], after["inner.bias"])
    assert distilled.get_parameter("inner.bias") is distilled.get_parameter("head.twin")
    assert not distilled.get_parameter("stem.weight").requires_grad


class Several(nn.Module):
    """Returns a mapping of a map, one number, and whole numbers that do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 1)

    def forward(self, images: Tensor) -> dict[str, object]:
        maps = torch.tanh(self.body(images))
        number = self.head(maps.mean((2, 3)))
        return {"maps": maps, "several": (number, number.round().long())}


def test_any_outputs_can_be_imitated() -> None:
    torch.manual_seed(0)
    original, pruned = Several(), Several()
    _, report = distil(original, pruned, batches(), passes=20, learning_rate=1e-2)
    assert report.divergence_after < 0.8 * report.divergence_before


def test_the_callers_modes_do_not_matter() -> None:
    original, pruned = pair()
    expected, _ = distil(original, pruned, batches(), passes=1)
    original.train()
    pruned.train()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        result, _ = distil(original, pruned, batches(), passes=1)
    assert result.training
    assert original.training
    assert same(values(expected), values(result))


@pytest.mark.parametrize("norm", [False, True])
def test_the_result_of_prune_can_be_passed_and_layers_compared(norm: bool) -> None:
    original = small("residual", 6, norm=norm).float()
    images = batches()
    result = selector.prune(original, images, criterion="l1", ratio=0.5, rounds=1, repair=False)
    plain, _ = distil(original, result, images, passes=6, learning_rate=1e-2)
    blocks, report = distil(original, result, images, passes=6, learning_rate=1e-2, blocks=True)
    assert report.divergence_after < report.divergence_before
    assert not same(values(plain), values(blocks))


def test_the_report_prints_two_plain_lines() -> None:
    report = DistillationReport(
        1024, 204, 12.0, 43.2, 17.72, 7.9, 1e-3, "frozen", "shifts", 300, 300, False
    )
    assert str(report) == (
        "distilled on 820 unlabelled images, 12 passes in 43 s (rate 0.001, BatchNorm: frozen, "
        "augmentation: shifts)\n"
        "divergence on 204 held-out images: 17.72 -> 7.9 (values of step 300 of 300)"
    )


class Noisy(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) + torch.rand(len(images), 3)


def broken(model: nn.Module) -> nn.Module:
    model.get_parameter("head.bias").data[0] = float("nan")
    return model


def changed(model: nn.Module, **attributes: object) -> nn.Module:
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


@dataclass(frozen=True, eq=False)
class Case:
    model: nn.Module
    small: nn.Module
    images: object
    arguments: dict[str, object]

    def __str__(self) -> str:
        return ""


def call(model: nn.Module | None = None, small: nn.Module | None = None, **rest: object) -> Case:
    original, pruned = pair()
    images = rest.pop("images", batches())
    return Case(model or original, small or pruned, images, rest or {"passes": 1})


def refused() -> Iterator[tuple[str, Case]]:
    yield "neither of minutes and passes", call(augment=None)
    yield "both of minutes and passes", call(passes=1, minutes=1)
    yield "minutes=0 must be a number above 0", call(minutes=0)
    yield "passes=-1", call(passes=-1)
    yield "passes=nan", call(passes=float("nan"))
    yield "learning_rate=0", call(passes=1, learning_rate=0)
    yield "seed=-1", call(passes=1, seed=-1)
    yield "at least 10 images, not 9", call(images=data(9, 3, dtype=torch.float32))
    yield "at least 10 images, not 0", call(images=[])
    yield "pass a DataLoader or a list", call(images=3)
    yield "do not fit together", call(images=[torch.zeros(8, 3, 8, 8), torch.zeros(8, 3, 9, 9)])
    yield r"\(16, 7\)", call(small=changed(pair()[1], head=nn.Linear(6, 7)))
    yield "its outputs are not all finite", call(small=broken(pair()[1]))
    yield "unpruned network's outputs are not all finite", call(model=broken(pair()[0]))
    yield "no parameter that requires a gradient", call(small=pair()[1].requires_grad_(False))
    yield "too coarse to train", call(small=pair()[1].bfloat16())
    yield "gives other outputs when it reads", call(model=Noisy(), small=nn.Linear(1, 1))
    yield "augment='flip' is unknown", call(passes=1, augment="flip")
    yield "augment failed", call(passes=1, augment=lambda images: None)
    yield "returned 3 images for", call(passes=1, augment=lambda images: images[:3])
    yield "mirror=True needs", call(passes=1, mirror=True, images=[torch.zeros(12, 8)])
    yield "do not depend on any parameter", call(Detached(), Detached())
    yield "pruned must be a network", call(small="small")  # type: ignore[arg-type]
    yield "blocks=True finds no layer", call(Noiseless(), Noiseless(), passes=1, blocks=True)


class Noiseless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) * self.scale


class Detached(Noiseless):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).detach()


@pytest.mark.parametrize(("message", "case"), list(refused()), ids=str)
def test_bad_input_is_refused_by_name(message: str, case: Case) -> None:
    with pytest.raises(SelectorError, match=message):
        distil(case.model, case.small, case.images, **case.arguments)  # type: ignore[arg-type]
