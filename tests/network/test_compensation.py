"""A shift is kept where it undoes what it should and nothing else."""

import pytest
import torch
from torch import Tensor, nn

from selector.network.compensation import find_absorbers
from selector.oracle.oracle import loss_changes
from selector.pruning.prune import prune
from tests.networks import data, randomise


class Branching(nn.Module):
    """A layer without bias before a BatchNorm, whose outputs are read in some other way too."""

    def __init__(self, other: str) -> None:
        super().__init__()
        self.other = other
        self.stem = nn.Conv2d(3, 6, 3)
        self.middle = nn.Conv2d(6, 6, 1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        if other in ("second", "called twice"):
            self.second = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.middle(torch.relu(self.stem(images)))
        x = self.norm(maps)
        if self.other == "added":
            x = x + maps
        elif self.other == "gate":
            x = x * torch.sigmoid(maps.detach())
        elif self.other == "view":
            x = x + 1e-4 * maps[:, :, :1, :1]
        elif self.other == "second":
            x = x + self.second(maps)
        elif self.other == "called twice":
            x = x + self.second(self.middle(torch.relu(x)))
        return self.head(torch.relu(x).mean((2, 3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("other", ["added", "gate", "view", "second", "called twice"])
def test_a_batchnorm_does_not_absorb_what_others_read(other: str, dtype: torch.dtype) -> None:
    model = randomise(Branching(other).to(dtype)).eval()
    assert find_absorbers(model, data(dtype=dtype)[0][0]) == {"stem": "stem", "head": "head"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batchnorm_absorbs_what_it_alone_reads(dtype: torch.dtype) -> None:
    model = randomise(Branching("nothing").to(dtype)).eval()
    assert find_absorbers(model, data(dtype=dtype)[0][0])["middle"] == "norm"


def test_a_constant_channel_is_free_only_where_its_mean_can_be_kept() -> None:
    """With another reader nothing is compensated, and so the removal is the plain one."""
    for other, kept in (("nothing", True), ("added", False)):
        model, batches = randomise(Branching(other).double()).eval(), data(8, 4)
        model.stem.weight.data[2] = 0
        model.stem.bias.data[2] = 0.7
        (plain,) = loss_changes(model, batches, "stem", [[2]])
        (change,) = loss_changes(model, batches, "stem", [[2]], mode="compensated")
        assert abs(plain.nats) > 1e-3
        assert change.nats == pytest.approx(0 if kept else plain.nats, abs=1e-9)
        result = prune(model, batches, ratio=0.3, rounds=1, criterion="l1", compensate=True)
        assert result.plan.choices


def test_a_bias_that_layers_share_absorbs_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU())
    model.append(nn.Conv2d(4, 4, 1))
    model[4].bias = model[2].bias
    assert find_absorbers(randomise(model), torch.ones(2, 3, 4, 4)) == {"0": "0"}
