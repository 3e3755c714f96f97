"""The benchmark of a network for ImageNet: what it prepares, runs and says, on a small one."""

import importlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

from selector.errors import SelectorError
from tests.networks import data, small
from training.__main__ import BENCHMARKS, ROOT
from training.benchmarks.large import network, report, runs
from training.benchmarks.large.runs import L1, NAMES, TARGETS, TORCH_PRUNING, LargeRun, begun
from training.benchmarks.networks.methods import DEFAULT, SELECTOR
from training.reporting.accuracy import accuracy
from training.reporting.result_file import RESULTS
from training.reporting.run_file import RunFile
from training.zoo.shared_third_party import IMAGENET


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A small network and noise in place of EfficientNet-Lite1 and ImageNet."""
    model = small("residual", 16, norm=True).float()
    batches = data(64, 16, dtype=torch.float32)
    for name in ("_network", "_calibration", "_tests", "_unpruned", "_cuts"):
        getattr(runs, name).cache_clear()
    monkeypatch.setattr(runs, "load_network", lambda: model)
    monkeypatch.setattr(runs, "image_batches", lambda *_: batches)
    return model


def run_of(method: str, target: float, pruned: float, repaired: float) -> LargeRun:
    return replace(
        begun(method, target),
        unpruned=0.9,
        pruned=pruned,
        repaired=repaired,
        macs_kept=target,
        weights_removed=0.1,
        seconds=100 * (1 - target) * (2 if method == SELECTOR else 1),
        repair_seconds=10.0,
    )


@pytest.mark.parametrize("method", [SELECTOR, L1, TORCH_PRUNING])
def test_every_step_ends_at_its_share_and_is_repaired(made: nn.Module, method: str) -> None:
    # The deepest first: the steps before it are made on the way, and are read later.
    found = {target: runs.run_one(begun(method, target)) for target in reversed(TARGETS)}
    tests = runs._tests()
    for target, one in found.items():
        assert one.failed is None
        assert one.unpruned == accuracy(made, tests)
        assert one.macs_kept is not None
        assert target - 0.1 < one.macs_kept <= target
        assert one.pruned is not None
        assert one.repaired is not None
    assert [found[target].seconds for target in TARGETS] == sorted(
        one.seconds for one in found.values()
    )


def test_a_repair_knows_the_channels_of_all_steps(made: nn.Module) -> None:
    step = runs._cuts(L1).up_to(TARGETS[-1])
    for name, places in step.kept.items():
        whole, left = (m.get_submodule(name).weight for m in (made, step.model))
        assert len(places) == len(left)
        if left.shape[1:] == whole.shape[1:]:  # Its inputs are whole, so its rows are as they were.
            torch.testing.assert_close(left, whole[list(places)])


def test_a_method_that_fails_says_why(made: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> object:
        raise SelectorError("no way")

    monkeypatch.setattr(runs, "cut", fail)
    one = runs.run_one(begun(L1, 0.8))
    assert one.failed == "no way"
    assert one.repaired is None
    assert report.summary_of([one]) == {"methods": 1}
    assert report.table_of([one]) == [[L1, *["-"] * 10]]


def test_no_run_is_made_twice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[tuple[str, float]] = []

    def make(one: LargeRun) -> LargeRun:
        made.append((one.method, one.target))
        return run_of(one.method, one.target, 0.5, 0.8)

    monkeypatch.setattr(runs, "run_one", make)
    file = tmp_path / runs.FILE
    runs.run_missing([SELECTOR, L1], file, None)
    order = [(method, target) for method in (SELECTOR, L1) for target in (0.8, 0.7)]
    assert made == order + [(method, target) for method in (SELECTOR, L1) for target in (0.9, 0.6)]
    assert len(runs.run_missing([SELECTOR], file, None)) == len(TARGETS)
    assert len(made) == 2 * len(TARGETS)
    # The selector's runs depend on its digest, those of L1 do not.
    monkeypatch.setattr(runs, "digest_of", lambda _: "another")
    assert {one.method for one in runs.finished(file)} == {L1}
    with pytest.raises(SelectorError, match=r"unknown method 'l3'; known: selector; always l1; "):
        runs.run_missing(["l3"], file, None)


def test_the_summary_is_in_points_of_accuracy() -> None:
    some = [run_of(SELECTOR, target, 0.4, 0.85) for target in TARGETS]
    some += [run_of(L1, 0.8, 0.1, 0.5), run_of(TORCH_PRUNING, 0.8, 0.3, 0.7)]
    summary = report.summary_of(some)
    assert summary["methods"] == 3
    assert summary["unpruned"] == 0.9
    assert summary["drop_at_80"] == summary["drop_at_70"] == 5
    assert summary["drop_at_60_unrepaired"] == 50
    assert summary["l1_drop_at_80"] == 40
    assert summary["torch_pruning_drop_at_80"] == 20
    assert "l1_drop_at_70" not in summary
    # At 80 %, the least share of both: 40 s over 20 s, and with a repair of 10 s each.
    assert summary["seconds_over_torch_pruning"] == 2
    assert summary["seconds_over_torch_pruning_repaired"] == round(50 / 30, 3)


def test_the_document_gets_the_runs_that_are_there(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text("above\n<!-- large: begin -->\nold\n<!-- large: end -->\nbelow\n")
    with pytest.raises(SelectorError, match="run benchmark-large first"):
        report.update_page(page, tmp_path)
    rows = [run_of(SELECTOR, 0.8, 0.4, 0.85), run_of(L1, 0.6, 0.1, 0.5)]
    (tmp_path / "large.json").write_text(json.dumps({"rows": [vars(one) for one in rows]}))
    report.update_page(page, tmp_path)
    text = page.read_text()
    assert "unpruned 90.0; 600 images to calibrate. Not run yet: torch-pruning taylor" in text
    assert "| selector | - | - | 40.0 | 85.0 | - | - | - | - | - | 10 |" in text
    assert "| always l1 | - | - | - | - | - | - | 10.0 | 50.0 | 40 | 10 |" in text
    assert "old" not in text
    assert "Points lost at 80% of the MACs, repaired: selector 5.0." in text
    assert "Points lost at 60% of the MACs, repaired: always l1 40.0." in text
    assert "the selector's cuts take" not in text
    both = [*rows, run_of(TORCH_PRUNING, 0.8, 0.3, 0.7)]
    assert (
        "Down to 80% of the MACs, the selector's cuts take 2.0 times the CPU time of "
        "Torch-Pruning's; with one repair each, 1.7 times."
    ) in report.said(both)
    assert report.said([]) == "Nothing has been run yet."


def test_the_document_holds_what_the_result_file_says(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    shutil.copyfile(BENCHMARKS, page)
    report.update_page(page, RESULTS)
    assert page.read_text() == BENCHMARKS.read_text()


def test_the_command_writes_the_result_file(tmp_path: Path) -> None:
    file = RunFile(tmp_path / runs.FILE, LargeRun.of)
    calls = {
        one.key: lambda one=one: one
        for one in (run_of(n, target, 0.5, 0.8) for n in NAMES for target in TARGETS)
    }
    file.complete(calls, jobs=1)
    report.run(None, None, tmp_path)
    found = json.loads((tmp_path / "large.json").read_text())
    assert found["summary"]["methods"] == len(NAMES)
    assert [LargeRun.of(row) for row in found["rows"]] == list(file.read().values())


def test_missing_packages_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> ModuleType:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(
        SelectorError, match=r"efficientnet_lite_pytorch.*pip install '\.\[large\]'"
    ):
        network.load_network()


def test_images_are_read_as_the_network_was_trained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SALIENCY_SHARED", str(tmp_path))
    with pytest.raises(SelectorError, match="point SALIENCY_SHARED to a folder that holds"):
        network.image_batches("train", 3)
    folder = tmp_path / "datasets" / IMAGENET
    folder.mkdir(parents=True)
    pictures = []
    for level in (0, 127, 255):
        stream = io.BytesIO()
        Image.new("RGB", (8, 8), (level, 127, 255)).save(stream, "PNG")
        pictures.append(stream.getvalue())
    table = pa.table({"image": pictures, "label": [5, 6, 7]})
    pq.write_table(table, folder / "train.parquet")
    ((inputs, labels),) = network.image_batches("train", 2)
    assert labels.tolist() == [5, 6]
    assert inputs.shape == (2, 3, 8, 8)
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    assert inputs[:, :, 0, 0].tolist() == [[-127 / 128, 0, 1], [0, 0, 1]]


def test_the_readme_holds_what_the_result_file_says(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    shutil.copyfile(ROOT / "README.md", readme)
    report.update_readme(readme, RESULTS)
    assert readme.read_text() == (ROOT / "README.md").read_text()


def test_the_readme_names_what_is_there() -> None:
    runs = [run_of(DEFAULT, 0.8, 0.4, 0.85), run_of(L1, 0.8, 0.1, 0.5), run_of(L1, 0.6, 0.1, 0.3)]
    assert report.said_briefly(runs) == (
        "- Top-1 in percent, 90.0 unpruned: at 80% of the MACs `prune` 85.0, L1 50.0."
    )
