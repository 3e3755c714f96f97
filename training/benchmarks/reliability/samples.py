"""Whole files of every kind that is loaded, small ones, made by the library itself."""

import argparse
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor, nn

import selector
from selector.pruning.resume import RoundStore
from selector.repair.distillation import distil as distillation

FORMATS = ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm")
ARMS = ("l1", "taylor", "fpgm")


class Tiny(nn.Module):
    """Two convolutions with BatchNorm, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 5, 3)
        self.head = nn.Linear(5, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images of shape (images, 3, height, width)."""
        hidden = self.second(self.norm(self.first(images)).relu()).relu()
        found: Tensor = self.head(hidden.mean((2, 3)))
        return found


def tiny(seed: int = 0) -> Tiny:
    """The network with drawn weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Tiny().eval()


def batches(seed: int = 0, count: int = 6) -> list[tuple[Tensor, Tensor]]:
    """Drawn images and labels."""
    chance = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(24, 3, 6, 6, generator=chance), torch.randint(3, (24,), generator=chance))
        for _ in range(count)
    ]


def make_samples(folder: Path) -> None:
    """Write a sample of every kind; what is there stays.

    Args:
        folder: One folder or file for each kind.
    """
    if (folder / "whole").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(2):
        selector.record(
            tiny(number),
            batches(number),
            network=f"net{number}",
            contexts=0,
            ratios=[0.2, 0.5],
            output=folder / "records",
        )
    records = selector.Records.load(folder / "records")
    selector.SaliencySelector(folds=2, trees=3, leaves=4).fit(records).save(folder / "selector")
    learnt = selector.SaliencySelector.load(folder / "selector")
    model, data = tiny(), batches()
    asked = {"ratio": 0.4, "selector": learnt}
    result = selector.prune(model, data, rounds=2, checkpoint=folder / "checkpoint", **asked)  # type: ignore[arg-type]
    selector.choose(model, data, verify=2, **asked).save(folder / "plan.json")  # type: ignore[arg-type]
    selector.save_pruned(result.model, folder / "pruned.safetensors")
    torch.save(model.state_dict(), folder / "weights.pt")
    _make_pickle(folder / "pickle.pt")
    journal = {"network": "net0", "contexts": 0, "ratios": [0.2]}
    selector.record(model, data, journal=folder / "journal", **journal)  # type: ignore[arg-type]
    distillation.distil(
        model, result, [x for x, _ in data], minutes=0.02, checkpoint=folder / "distillation"
    )
    _make_images(folder)
    (folder / "whole").touch()


def _make_pickle(file: Path) -> None:
    """A checkpoint with objects beside the tensors, as training scripts leave them."""
    optimizer = torch.optim.SGD(tiny().parameters(), lr=0.1, momentum=0.9)
    held = {
        "model": tiny(),
        "args": argparse.Namespace(rate=0.1, layers=[6, 5], name="tiny"),
        "optimizer": optimizer.state_dict(),
        "best": np.float64(0.5),
        "seen": {"train", "test"},
    }
    torch.save(held, file)


def _make_images(folder: Path) -> None:
    (folder / "images" / "pictures").mkdir(parents=True, exist_ok=True)
    picture = Image.radial_gradient("L").resize((24, 24)).convert("RGB")
    encoded = []
    for name in FORMATS:
        buffer = io.BytesIO()
        picture.save(buffer, name)
        (folder / "images" / "pictures" / f"image.{name}").write_bytes(buffer.getvalue())
        encoded.append(buffer.getvalue())
    table = pa.table({"image": encoded, "label": list(range(len(encoded)))})
    names = "\n".join(FORMATS).encode()
    pq.write_table(table.replace_schema_metadata({b"classes": names}), folder / "images.parquet")


def fingerprint_of_checkpoint(folder: Path) -> str:
    """What the sample checkpoint says that it belongs to."""
    from selector.pruning.resume import HEADER
    from selector.tensor_files import read_tensor_file

    return str(read_tensor_file(folder / "state.safetensors", HEADER)[1]["fingerprint"])


def store(folder: Path) -> RoundStore:
    """The sample checkpoint's store."""
    return RoundStore(folder, fingerprint_of_checkpoint(folder))
