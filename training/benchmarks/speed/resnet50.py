"""What does routing cost? A ResNet-50 pruned to half its MACs by the selector and by Taylor.

The shipped selector without oracle calls against Torch-Pruning's pruner with its Taylor importance:
the same images of 224 pixels, the same number of rounds, BatchNorm recalibrated after each by both,
on one core, one after the other. Weights and images are random: they do not change the time.
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import resnet50

from selector.pruning.prune import prune
from selector.tables import text_table
from training.benchmarks.networks.torch_pruning_rival import prune_with_torch_pruning
from training.reporting.result_file import RESULTS, result_if_there, write_result

NAME = "resnet50_cost"
IMAGES, BATCH, KEEP_MACS = 256, 32, 0.5
RATIO = "resnet50_time_over_torch_pruning"


def run(
    images: int = IMAGES, size: int = 224, batch: int = BATCH, folder: Path = RESULTS
) -> dict[str, float]:
    """Prune by both, print the table, write the result file; return its summary.

    Args:
        images: Images for scores and recalibration.
        size: Their height and width in pixels.
        batch: Images at a time.
        folder: Where the result file goes.
    """
    torch.set_num_threads(1)
    model, batches = random_network(), random_images(images, size, batch)
    rounds: list[int] = []

    def ours() -> nn.Module:
        result = prune(model, batches, keep_macs=KEEP_MACS)
        rounds.append(len(result.rounds))
        return result.model

    def theirs() -> nn.Module:
        return prune_with_torch_pruning(
            model, batches, "taylor", "global", keep_macs=KEEP_MACS, rounds=rounds[0]
        ).model

    rows = [_timed("selector", ours), _timed("torch-pruning taylor", theirs)]
    print(text_table(list(rows[0]), [[f"{value}" for value in row.values()] for row in rows]))
    seconds = [float(row["core_seconds"]) for row in rows]
    summary = {
        RATIO: round(seconds[0] / seconds[1], 3),
        "selector_seconds": seconds[0],
        "torch_pruning_seconds": seconds[1],
        "images": float(images),
        "pixels": float(size),
        "rounds": float(rounds[0]),
    }
    print(write_result(NAME, summary, rows, folder))
    return summary


def ratio(folder: Path) -> dict[str, float]:
    """What is known of it, for the summary of others: one entry, or none."""
    found = result_if_there(NAME, folder)
    return {} if found is None else {RATIO: found["summary"][RATIO]}


def random_network() -> nn.Module:
    """Torchvision's ResNet-50, untrained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = resnet50(weights=None)
    return model.eval()


def random_images(images: int, size: int, batch: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of noise with random labels of a thousand classes."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(images, 3, size, size, generator=generator)
    labels = torch.randint(1000, (images,), generator=generator)
    return list(zip(torch.split(inputs, batch), torch.split(labels, batch), strict=True))


def _timed(method: str, work: Callable[[], nn.Module]) -> dict[str, str | float]:
    """Seconds of work: of one core, which others on the machine do not change, and on the clock."""
    core, clock = time.process_time(), time.perf_counter()
    small = work()
    core, clock = time.process_time() - core, time.perf_counter() - clock
    left = sum(parameter.numel() for parameter in small.parameters())
    return {
        "method": method,
        "core_seconds": round(core, 4),
        "clock_seconds": round(clock, 1),
        "parameters_left": left,
    }
