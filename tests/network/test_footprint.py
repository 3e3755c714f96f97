"""Memory: what a hand count gives, the network left as it was, and no loss where it fails."""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from selector.network.checkpoint import save_pruned
from selector.network.footprint import file_bytes, footprint, peak_bytes
from tests.networks import data, small, state_of


def chain(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 2, 1), nn.ReLU(inplace=True)
    ).eval()


def test_the_peak_is_what_a_hand_count_gives() -> None:
    """Weights, the images, and the widest layer's outputs before and after its ReLU."""
    images = torch.randn(5, 3, 8, 8)
    for width in (4, 16):
        model = chain(width)
        weights = sum(4 * p.numel() for p in model.parameters())
        assert peak_bytes(model, images) == weights + 4 * images.numel() + 2 * 4 * 5 * width * 64


def test_what_is_freed_does_not_count() -> None:
    class Steps(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            for _ in range(10):
                images = images + 1
            return images

    images = torch.randn(2, 3, 8, 8)
    # The images, the value that is read and the one that is written.
    assert peak_bytes(Steps(), images) == 3 * 4 * images.numel()


def test_a_view_takes_no_memory() -> None:
    class Views(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, ::2].T

    images = torch.randn(2, 3, 8, 8)
    assert peak_bytes(Views(), images) == 4 * images.numel()


def test_the_file_is_as_large_as_its_tensors(tmp_path: Path) -> None:
    model = small("residual", norm=True)
    save_pruned(model, tmp_path / "small.safetensors")
    with safe_open(tmp_path / "small.safetensors", "pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
    assert file_bytes(model) == sum(x.numel() * x.element_size() for x in tensors)
    header = (tmp_path / "small.safetensors").stat().st_size - file_bytes(model)
    assert 0 < header < 4000


def test_the_network_is_left_as_it_was() -> None:
    model = small("two_consumers", norm=True).train()
    before = state_of(model)
    footprint(model, data()[0][0])
    assert state_of(model) == before
    assert all(module.training for module in model.modules())


def test_a_network_that_does_not_run_so_is_not_measured() -> None:
    class Refuses(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("not under a dispatch mode")

    assert peak_bytes(Refuses(), torch.randn(1, 3)) is None
    assert footprint(Refuses(), torch.randn(1, 3)).peak_bytes is None
