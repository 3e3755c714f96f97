"""Work that is killed and given again: a recording, a fit, a pruning, a campaign."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import selector
from selector.data.image_data import ImageData, TensorBatches
from selector.pruning.resume import FILE, HEADER
from selector.tensor_files import checksum, read_tensor_file
from training.benchmarks.reliability.loaders import digest
from training.benchmarks.reliability.samples import batches, tiny
from training.campaign import campaign
from training.campaign.backends import BackendName
from training.campaign.tasks import RecordingTask

Work = Callable[[Path, Path], None]
"""From the folder of samples, in a folder of its own."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Some work and what it leaves."""

    prepare: Work
    run: Work
    whole: Callable[[Path], None]
    """Make sure that what is there, in the middle or at the end, can be read; else raise."""
    result: Callable[[Path], str]
    """What is there at the end, as a digest."""


def _nothing(_samples: Path, _place: Path) -> None:
    """Nothing to prepare."""


def _record(_samples: Path, place: Path) -> None:
    asked = {"network": "net", "contexts": 0, "ratios": [0.2, 0.5]}
    selector.record(
        *(tiny(), batches()),
        journal=place / "journal",
        output=place / "records",
        **asked,  # type: ignore[arg-type]
    )


def load_records(folder: Path) -> None:
    """Make sure that what is there of records can be read."""
    if folder.is_dir() and any(not x.name.startswith(".") for x in folder.iterdir()):
        selector.Records.load(folder)


def _records_text(folder: Path) -> str:
    found = selector.Records.load(folder)
    return digest(sorted(p.network for p in found.networks), found.candidates)


def _old_selector(samples: Path, place: Path) -> None:
    selector.SaliencySelector.load(samples / "selector").save(place / "selector")


def _fit(samples: Path, place: Path) -> None:
    learnt = selector.SaliencySelector(folds=2, trees=4, leaves=3, seed=1)
    learnt.fit(selector.Records.load(samples / "records")).save(place / "selector")


def _load_selector(place: Path) -> None:
    selector.SaliencySelector.load(place / "selector")


def _prune(samples: Path, place: Path) -> None:
    learnt = selector.SaliencySelector.load(samples / "selector")
    asked = {"ratio": 0.5, "selector": learnt, "rounds": 3}
    result = selector.prune(tiny(), batches(), checkpoint=place / "state", **asked)  # type: ignore[arg-type]
    selector.save_pruned(result.model, place / "small.safetensors")
    result.plan.save(place / "plan.json")
    result.report.save_html(place / "report.html")


def _load_pruned(place: Path) -> None:
    state = place / "state" / FILE
    if state.exists():
        read_tensor_file(state, HEADER)
    if (place / "small.safetensors").exists():
        selector.load_pruned(tiny, place / "small.safetensors")
    if (place / "plan.json").exists():
        selector.Plan.load(place / "plan.json")
    if (place / "report.html").exists():
        assert (place / "report.html").read_text().rstrip().endswith("</html>")


def _pruned_text(place: Path) -> str:
    model = selector.load_pruned(tiny, place / "small.safetensors")
    plan = selector.Plan.load(place / "plan.json")
    return digest(checksum(model.state_dict(), ""), plan)


def _made(number: int, weights: Path, _device: torch.device) -> tuple[nn.Module, TensorBatches]:
    model, file = tiny(number), weights / f"net{number}.safetensors"
    if not file.exists():
        selector.save_pruned(model, file)
    images = torch.cat([x for x, _ in batches(number, 6)])
    labels = torch.cat([y for _, y in batches(number, 6)])
    pixels = (images.clamp(-2, 2) * 60 + 128).to(torch.uint8)
    data = ImageData(pixels, labels, ("a", "b", "c"))
    return model, TensorBatches(data, batch_size=24, mean=(0.5,), std=(0.5,))


def _campaign(_samples: Path, place: Path) -> None:
    campaign_of(2, place)


def campaign_of(
    networks: int, place: Path, *, jobs: int = 1, backend: BackendName = "local"
) -> None:
    """Record tiny networks, and make sure that all of them are."""
    tasks = [
        RecordingTask(f"net{n}", "tiny", "drawn", "own", n, partial(_made, n))
        for n in range(networks)
    ]
    ways: dict[str, Any] = {"jobs": jobs, "minutes": None, "backend": backend}
    outcomes = campaign.run(tasks, place / "data", place / "weights", **ways)
    assert all(outcome.done for outcome in outcomes), outcomes


def campaign_text(place: Path) -> str:
    """What a campaign has recorded, as a digest; its log must be whole."""
    log = (place / "weights" / "campaign.jsonl").read_text().splitlines()
    assert all(isinstance(json.loads(line), dict) for line in log)
    return _records_text(place / "data")


SCENARIOS: dict[str, Scenario] = {
    "record": Scenario(
        prepare=_nothing,
        run=_record,
        whole=lambda place: load_records(place / "records"),
        result=lambda place: _records_text(place / "records"),
    ),
    "fit": Scenario(
        prepare=_old_selector,
        run=_fit,
        whole=_load_selector,
        result=lambda place: selector.SaliencySelector.load(place / "selector").digest,
    ),
    "prune": Scenario(prepare=_nothing, run=_prune, whole=_load_pruned, result=_pruned_text),
    "campaign": Scenario(
        prepare=_nothing,
        run=_campaign,
        whole=lambda place: load_records(place / "data"),
        result=campaign_text,
    ),
}
