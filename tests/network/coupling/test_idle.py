"""Layers that evaluation does not use are cut with the rest, or forbid the cut by name."""

import pytest
import torch
from torch import Tensor, nn

from selector.network.tracing import find_groups
from selector.pruning.prune import prune
from tests.networks import data, randomise, state_of


class Deep(nn.Module):
    """Two layers and a head, and one more head for training, made in some way."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.head, self.aux = nn.Linear(8, 5), nn.Linear(6, 5)
        if how == "sequence":
            layers = [nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 1)]
            self.aux = nn.Sequential(*layers)  # type: ignore[assignment]
        if how == "normalised":
            self.aux = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 5))  # type: ignore[assignment]
        if how == "added":
            self.aux = nn.Identity()  # type: ignore[assignment]
            self.noise = nn.Conv2d(3, 6, 1)

    def forward(self, images: Tensor, more: bool = False) -> object:
        x = torch.relu(self.a(images))
        if self.how == "added" and self.training:
            x = x + self.noise(images)
        out = self.head(torch.relu(self.b(x)).mean((2, 3)))
        if self.how in ("training", "normalised") and self.training:
            return out, self.aux(x.mean((2, 3)))
        if self.how == "softmax" and self.training:
            return out, self.aux(x.mean((2, 3)).softmax(1))
        if self.how == "sequence" and self.training:
            return out, self.aux(x).mean((2, 3))
        if self.how == "flag" and more:
            return out, self.aux(x.mean((2, 3)))
        return out

    def forward_aux(self, images: Tensor) -> Tensor:
        if self.how != "method":
            raise NotImplementedError
        return self.aux(torch.relu(self.a(images)).mean((2, 3)))


def deep(how: str) -> Deep:
    model = randomise(Deep(how).double()).eval()
    assert isinstance(model, Deep)
    return model


IDLE = {
    "training": {"aux"},
    "sequence": {"aux.0"},
    "added": {"noise"},
    "normalised": {"aux.0", "aux.1"},
}


@pytest.mark.parametrize("how", IDLE)
@pytest.mark.parametrize("rounds", [1, 3])
def test_what_runs_in_training_only_is_cut_too(how: str, rounds: int) -> None:
    model, batches = deep(how), data()
    before, chance = state_of(model), torch.get_rng_state()
    groups = find_groups(model, batches[0][0])
    assert state_of(model) == before
    assert torch.equal(torch.get_rng_state(), chance)
    assert {"a", "b"} <= groups.prunable.keys()
    assert set(groups.prunable["a"].consumers) == {"b"}
    idle = {part.layer for part in groups.prunable["a"].slices if part.idle}
    assert idle == IDLE[how]
    result = prune(model, batches, ratio=0.5, rounds=rounds, criterion="fisher").model.train()
    assert result.a.out_channels == 3
    outputs = result(batches[0][0])
    loss = sum(x.sum() for x in (outputs if isinstance(outputs, tuple) else [outputs]))
    loss.backward()
    assert all(p.grad is not None for p in result.parameters())


@pytest.mark.parametrize("how", ["flag", "method"])
def test_what_runs_behind_a_flag_or_method_keeps_its_group_whole(how: str) -> None:
    model, batches = deep(how), data()
    groups = find_groups(model, batches[0][0])
    assert "layer 'aux' does not run" in groups.refused["a"]
    assert groups.prunable.keys() == {"b"}
    result = prune(model, batches, ratio=0.5, rounds=1, criterion="l1").model
    if how == "flag":
        result(batches[0][0], more=True)
    else:
        result.forward_aux(batches[0][0])


def test_what_cannot_be_cut_in_training_mode_is_refused() -> None:
    groups = find_groups(deep("softmax"), data()[0][0])
    assert groups.refused["a"].startswith("in training mode: ")
    assert groups.prunable.keys() == {"b"}


class Block(nn.Module):
    """Two layers with a width of their own between them, and one that nothing calls today."""

    def __init__(self, spare: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 6, 1)
        self.spare = nn.Conv2d(8, 8, 1) if spare else None

    def forward(self, x: Tensor, more: bool = False) -> Tensor:
        inner = torch.relu(self.first(x))
        if more and self.spare is not None:
            inner = self.spare(inner)
        return torch.relu(x + self.second(inner))


def test_an_unused_layer_forbids_cuts_only_where_code_could_hand_it_the_channels() -> None:
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 5)
            self.blocks = nn.ModuleList([Block(spare=False), Block(spare=True)])
            self.later = Block(spare=False)
            self.body = nn.Sequential(nn.Conv2d(6, 7, 1), nn.ReLU(), nn.Conv2d(7, 6, 1))
            self.other = nn.Linear(7, 5)

        def inner(self, images: Tensor) -> Tensor:
            return self.other(self.body[:2](self.stem(images)).mean((2, 3)))

        def forward(self, images: Tensor, deep: bool = False) -> Tensor:
            x = self.body(self.stem(images))
            for block in self.blocks:
                x = block(x)
            x = self.later(x) if deep else x
            return self.head(x.mean((2, 3)))

    groups = find_groups(randomise(Blocks().double()).eval(), data()[0][0])
    assert groups.prunable.keys() == {"blocks.0.first"}
    assert "'blocks.1.spare' does not run" in groups.refused["blocks.1.first"]
    # What is in a container, and the stream, may be seen by all of the network's code.
    assert "'other' does not run" in groups.refused["body.0"]
    assert "does not run" in groups.refused["blocks.0.second"]


def test_what_nothing_mentions_forbids_nothing() -> None:
    model = deep("plain")
    del model.aux
    model.leftover = nn.Linear(6, 6).double()
    assert {"a", "b"} == find_groups(model, data()[0][0]).prunable.keys()


def test_attention_is_not_idle() -> None:
    """Its projections are read by functions, not called."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.hidden = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 8)
            self.out, self.head = nn.Linear(8, 8), nn.Linear(8, 5)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, images: Tensor) -> Tensor:
            x = self.stem(images).flatten(2).transpose(1, 2)
            x = x + self.attention(x, x, x, need_weights=False)[0]
            return self.head((x + self.out(torch.relu(self.hidden(x)))).mean(1))

    model = randomise(Tokens().double()).eval()
    groups = find_groups(model, data()[0][0])
    assert "hidden" in groups.prunable
    assert not any("does not run on the probe" in reason for reason in groups.refused.values())
