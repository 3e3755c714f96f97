"""The benchmark of repair: which networks, in which order, resumable, and honest sums."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from selector.errors import SelectorError
from selector.pruning.prune import prune
from training.benchmarks.common.peak_memory import RESET
from training.benchmarks.repair import cases, memory, report, runs, settings, speed
from training.benchmarks.repair.cases import OWN, Case
from training.benchmarks.repair.memory import MemoryRun
from training.benchmarks.repair.runs import Accuracies, RepairRun, Seconds
from training.benchmarks.repair.settings import Setting, SettingsRun
from training.benchmarks.repair.speed import SpeedRun, TimedNetwork
from training.zoo.shared_third_party import IMAGENET, third_party_folder, third_party_networks

needs_folder = pytest.mark.skipif(
    third_party_folder() is None, reason="no networks/third_party in the shared folder"
)
CASE = Case("small_digits", "mnist", "test", 0.5, 2, images=40, test_images=60)


def made_run(network: str, *shares: float | None, passes: int = 40) -> RepairRun:
    return RepairRun(
        network=network,
        dataset="mnist",
        role="own" if network == OWN else "test",
        settings="of today",
        macs=2e6,
        images=256,
        test_images=1000,
        keep_macs=0.5,
        rounds=7,
        passes=passes,
        accuracies=Accuracies(*shares),
        seconds=Seconds(0.04, 1.26, 0.5, 3.0),
    )


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A small network and noise in place of a third party's network and its images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(72, 5),
        ).eval()

    def images(count: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        inputs = torch.randn(count, 1, 10, 10, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            labels = model(inputs).argmax(1)
        return list(zip(inputs.split(20), labels.split(20), strict=True))

    for room in (cases, runs):
        monkeypatch.setattr(room, "network_of", lambda case: model)
        monkeypatch.setattr(room, "calibration_of", lambda case: images(case.images, 1))
    monkeypatch.setattr(runs, "test_batches_of", lambda case: images(case.test_images, 2))
    return model


def test_a_run_repairs_the_network_that_was_pruned(digits: nn.Module) -> None:
    before = {name: value.clone() for name, value in digits.state_dict().items()}
    found = runs.run_one(CASE)
    assert found.failed is None
    # Conv 1: 8 x 8 x 8 outputs of 9 inputs; conv 2: 8 x 3 x 3 of 72; the linear layer: 72 x 5.
    assert found.macs == 8 * 64 * 9 + 8 * 9 * 72 + 360
    assert (found.test_images, found.rounds, found.passes) == (60, 2, 40)
    shares = found.accuracies
    assert shares.unpruned == 1.0  # Its labels are what it says.
    assert shares.pruned is not None
    assert shares.repaired is not None
    assert shares.distilled is not None
    assert shares.pruned < 1.0
    assert "layers refitted" in found.repair
    assert "40 passes" in found.distillation or "stopped early" in found.distillation
    seconds = found.seconds
    assert min(seconds.prune, seconds.repair, seconds.distil) > 0
    for name, value in digits.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in digits.parameters())


def test_a_failed_run_keeps_what_was_reached(
    digits: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise SelectorError("no repair today")

    monkeypatch.setattr(runs, "reconstruct", fails)
    found = runs.run_one(CASE)
    assert found.failed == "no repair today"
    assert found.accuracies.pruned is not None
    assert found.accuracies.repaired is found.accuracies.distilled is None
    assert report.summary_of([found], []) == {}
    assert report.row_of(asdict(found))[7] == "-"


def test_finished_runs_are_not_run_again(
    digits: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def pretend(case: Case) -> RepairRun:
        asked.append(case.name)
        made = made_run(case.name, 0.9, 0.5, 0.7, 0.8)
        return replace(made, settings=runs.settings_of(case))

    monkeypatch.setattr(runs, "run_one", pretend)
    file = tmp_path / runs.FILE
    first = runs.run_missing([CASE], file, None)
    assert runs.run_missing([CASE], file, None) == first
    assert asked == [CASE.name]
    deeper = replace(CASE, keep_macs=0.3)
    assert runs.finished([deeper], file) == []
    assert runs.run_missing([deeper], file, -1.0) == []
    with torch.no_grad():
        next(digits.parameters()).add_(1)
    cases.weights_of.cache_clear()
    assert runs.finished([CASE], file) == []


@pytest.mark.parametrize(
    ("macs", "images", "passes"),
    [(1e6, 256, 40), (1e8, 256, 40), (2e8, 256, 20), (4e8, 256, 0), (5e7, 1024, 20)],
)
def test_passes_take_a_minute_at_most(
    macs: float, images: int, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cases, "work_of", lambda case: macs)
    assert cases.passes_for(replace(CASE, images=images)) == passes


def test_the_summary_counts_third_party_networks_alone() -> None:
    several = [
        made_run(OWN, 0.926, 0.3, 0.6, 0.741),
        made_run("one", 0.99, 0.50, 0.80, 0.90),
        made_run("two", 0.95, 0.70, 0.69, 0.60),
        made_run("large", 0.60, 0.40, 0.50, None, passes=0),
        replace(made_run("broken", 0.9, 0.1), failed="why"),
    ]
    times = [SpeedRun("resnet56", 32, 256, 3, 1, 2.0, 3.0)]
    assert report.summary_of(several, times) == {
        "distilled_cy_resnet20_30": 74.1,
        "third_party_networks": 3,
        "third_party_mean_gain_points": pytest.approx(13.0),
        "third_party_worst_points": -1.0,
        "third_party_distilled_networks": 2,
        "third_party_mean_gain_distilled_points": 15.0,
        "third_party_mean_distilled_over_repaired_points": 0.5,
        "test_networks": 3,
        "test_median_drop_50_pruned": pytest.approx(25.0),
        "test_median_drop_50_repaired": pytest.approx(19.0),
        "resnet56_time_ratio": 1.5,
    }
    assert report.summary_of([], []) == {}
    kept = [
        replace(made_run("one", 0.99, 0.50, 0.80, 0.90), role="test"),
        replace(made_run("two", 0.95, 0.70, 0.93, 0.94), role="test"),
        replace(made_run("other", 0.9, 0.1, 0.2, 0.3), role="learn"),
        replace(made_run("large", 0.9, 0.1, 0.2, 0.3), role="test", dataset="imagenet-sample"),
    ]
    drops = {k: v for k, v in report.summary_of(kept, []).items() if k.startswith("test_")}
    assert drops == {
        "test_networks": 2,
        "test_median_drop_50_pruned": 37.0,
        "test_median_drop_50_repaired": 10.5,
        "test_median_drop_50_distilled": 5.0,
    }


def test_a_run_is_read_back_and_shown(tmp_path: Path) -> None:
    made = made_run("large", 0.605, 0.4, 0.5, None, passes=0)
    assert RepairRun.of(json.loads(json.dumps(asdict(made)))) == made
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- repair: begin -->\nold\n<!-- repair: end -->\nafter\n")
    with pytest.raises(SelectorError, match="run benchmark-repair first"):
        report.update_page(page, tmp_path)
    rows = [asdict(made), asdict(SpeedRun("resnet56", 32, 256, 3, 1, 2.0, 3.0))]
    summary = report.summary_of([made], [])
    (tmp_path / "repair.json").write_text(json.dumps({"rows": rows, "summary": summary}))
    report.update_page(page, tmp_path)
    lines = page.read_text().splitlines()
    assert lines[0] == "before"
    assert lines[-1] == "after"
    assert lines[4:-2] == [
        "| large | test | 2.0 | 50% | 7 | 60.5 | 40.0 | 50.0 | - | 0 | 0.0 | 1.3 | 0.5 | - |",
        "",
        "- Over 1 networks of others (0 on ImageNet) repair is worth 10.0 points in the mean; the "
        "network that gains least changes by +10.0.",
        "- At half the MACs, the 1 of role `test` (ImageNet apart) lose in the median, in points: "
        "20.5 pruned, 10.5 repaired.",
    ]


@needs_folder
def test_every_third_party_network_whose_images_are_here_is_a_case() -> None:
    every = cases.every_case()
    assert every[OWN].role == "own"
    known = third_party_networks()
    for name, case in every.items():
        if name != OWN:
            assert (case.role, case.dataset) == (known[name].role, known[name].dataset)
            assert case.keep_macs == (0.8 if case.dataset == IMAGENET else 0.5)
    sizes = [cases.work_of(c) * c.images for c in every.values() if c.dataset != IMAGENET]
    assert sizes == sorted(sizes)
    assert [c.dataset for c in every.values()][len(sizes) :] == [IMAGENET] * (
        len(every) - len(sizes)
    )
    with pytest.raises(SelectorError, match="no network 'nobody' whose images are here; known: "):
        cases.chosen_cases(["nobody"])


def test_speed_is_measured_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def plain() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 5)
        )

    monkeypatch.setattr(speed, "SUBJECTS", {"plain": TimedNetwork(plain, 8, 5, 24, 12, 2)})
    order: list[str] = []
    clock = iter(range(100))

    def scoring(*_: Any) -> None:
        order.append("scoring")

    def repair(*_: Any) -> None:
        order.append("repair")
        next(clock)

    monkeypatch.setattr(speed, "scoring_pass", scoring)
    monkeypatch.setattr(speed, "reconstruct", repair)
    monkeypatch.setattr(speed, "time", SimpleNamespace(process_time=lambda: float(next(clock))))
    [found] = speed.run_missing(["plain"], tmp_path / speed.FILE, None)
    assert order == ["scoring", "repair"] * 2
    assert found.ratio == 2.0
    assert speed.finished(tmp_path / speed.FILE) == [found]


def test_what_is_timed_is_half_the_network() -> None:
    subject = replace(speed.SUBJECTS["resnet56"], images=4, batch=2)
    model, images, pruned = speed.set_up(subject)
    assert len(images) == 2
    kept = [
        layer.weight.numel() for layer in pruned.model.modules() if isinstance(layer, nn.Conv2d)
    ]
    whole = [layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert 0.4 < sum(kept) / sum(whole) < 0.6
    with pytest.raises(SelectorError, match="unknown network 'vgg'; known: resnet56"):
        report.run_speed(["vgg"], None, Path("nowhere"))


@pytest.mark.skipif(not RESET.exists(), reason="peaks that can be set back are Linux's")
def test_peak_memory_is_what_the_work_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a pass that holds so much: a known number of MiB."""
    held = 200

    def hold(*_: object) -> None:
        torch.ones(held * 2**18).sum()

    monkeypatch.setattr(memory, "set_up", lambda _: (nn.Identity(), [], None))
    monkeypatch.setattr(memory, "scoring_pass", hold)
    monkeypatch.setattr(memory, "reconstruct", lambda *_: None)
    assert memory._peak("resnet50", "scoring") == pytest.approx(held, abs=20)
    assert memory._peak("resnet50", "repair") == pytest.approx(0, abs=20)


def test_the_summary_has_the_largest_ratio_of_memory() -> None:
    peaks = [MemoryRun("resnet50", 256, 1, 800.0, 1200.0), MemoryRun("resnet56", 256, 1, 90.0, 9.0)]
    summary = report.summary_of([], [], peaks)
    assert summary["memory_ratio"] == 1.5
    assert summary["resnet56_repair_mib"] == 9.0


def settings_run(network: str, setting: Setting, keep: float, share: float) -> SettingsRun:
    return SettingsRun(network, *setting, keep, "a digest", share, 2.0)


def test_settings_are_compared_on_networks_that_have_them_all() -> None:
    whole = [
        settings_run("whole", setting, keep, 0.5 + 0.01 * (setting.rounds or 0))
        for setting in settings.VARIED["rounds"]
        for keep in settings.KEPT
    ]
    part = settings_run("part", settings.VARIED["rounds"][0], 0.5, 0.9)
    table = settings.table_of([*whole, part], "rounds")
    assert table.networks == 1
    assert [row[0] for row in table.rows] == ["1", "2", "4", "7"]
    assert [row[1] for row in table.rows] == ["51.0", "52.0", "54.0", "57.0"]
    assert table.summary["accuracy_50_rounds_7"] == 0.57
    # Numbers of images were not run.
    assert settings.table_of(whole, "images").rows == []
    assert settings.summary_of(whole)["networks_images"] == 0


def test_a_setting_prunes_by_as_many_rounds_and_images(
    digits: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def watched(model: nn.Module, images: Any, **how: Any) -> Any:
        seen.extend([how["rounds"], sum(len(labels) for _, labels in images)])
        return prune(model, images, **how)

    for name in ("network_of", "calibration_of", "test_batches_of"):
        monkeypatch.setattr(settings, name, getattr(runs, name))
    monkeypatch.setattr(settings, "prune", watched)
    found = settings.run_one(CASE, Setting(rounds=2, images=60), 0.5, "a digest")
    assert seen == [2, 60]
    assert (found.rounds, found.images, found.keep_macs) == (2, 60, 0.5)
    assert 0 < found.accuracy <= 1
