"""Names that a terminal would obey, a browser would run or a file system would follow."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import selector
from selector.tables import printable

NAME = "a\x1b[8m<b>/\u202e" + "x" * 300


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.add_module(NAME, nn.Conv2d(3, 8, 3))
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.get_submodule(NAME)(images).relu().mean((2, 3)))


def named() -> Named:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Named().eval()


def batches() -> list[tuple[Tensor, Tensor]]:
    chance = torch.Generator().manual_seed(0)
    return [
        (torch.randn(40, 3, 8, 8, generator=chance), torch.randint(3, (40,), generator=chance))
        for _ in range(3)
    ]


def is_plain(text: str) -> bool:
    return text.replace("\n", "").isprintable()


def test_all_that_is_printed_or_written_of_a_strange_name_is_harmless(tmp_path: Path) -> None:
    model = named()
    result = selector.prune(model, batches(), ratio=0.3, rounds=1, checkpoint=tmp_path / "state")
    assert NAME in result.plan.removals
    assert is_plain(str(result.plan))
    assert is_plain(str(result.report))
    result.report.save_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert is_plain(page)
    assert "<b>/" not in page
    result.plan.save(tmp_path / "plan.json")
    assert selector.Plan.load(tmp_path / "plan.json") == result.plan
    selector.save_pruned(result.model, tmp_path / "small.safetensors")
    loaded = selector.load_pruned(named, tmp_path / "small.safetensors")
    images = batches()[0][0]
    assert torch.equal(loaded.eval()(images), result.model.eval()(images))


def test_a_journal_of_a_strange_name_goes_on(tmp_path: Path) -> None:
    asked = {"network": "one", "contexts": 0, "ratios": [0.2], "journal": tmp_path}
    found = selector.record(named(), batches(), **asked)  # type: ignore[arg-type]
    assert {path.parent for path in tmp_path.rglob("*.json")} == {tmp_path / "one-0"}
    again = selector.record(named(), batches(), **asked)  # type: ignore[arg-type]
    assert again.candidates == found.candidates


@pytest.mark.parametrize("text", ["plain", "two\nlines", "naïve → ± 中文"])
def test_ordinary_text_stays(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize("text", ["\x1b[2J", "a\rb", "\x00", "\u202e", "\ud800", "\x9b31m"])
def test_what_a_terminal_obeys_is_written_out(text: str) -> None:
    assert is_plain(printable(text))
    assert printable(text) != text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full device")
def test_a_full_device_and_a_closed_pipe_are_one_line_or_none() -> None:
    root = Path(__file__).parents[1]
    asked = [sys.executable, "-m", "selector.cli", "metrics"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            asked, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment
        )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: the output cannot be written: [Errno 28] No space left on device"
    ]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        asked, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, env=environment
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
