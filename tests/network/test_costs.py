"""Multiply-accumulates outside convolutions and linear layers are counted, and stay."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from selector.network.costs import count_costs
from selector.network.surgery import apply_cuts, cuts_of
from selector.network.tracing import find_groups
from selector.planning.choose import choose
from tests.networks import STYLES, data, randomise, small

TOKENS, WIDTH = 16, 12


class Mixed(nn.Module):
    """Patches, something that mixes tokens, a hidden layer, and a head."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.mix: nn.Module
        self.patches = nn.Conv2d(3, WIDTH, 2, 2)
        if how == "attention":
            self.mix = nn.MultiheadAttention(WIDTH, 3, batch_first=True)
        elif how == "encoder":
            self.mix = nn.TransformerEncoderLayer(WIDTH, 3, 20, batch_first=True)
        elif how == "lstm":
            self.mix = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        elif how == "gru":
            self.mix = nn.GRU(WIDTH, WIDTH, 2, batch_first=True)
        else:
            self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.hidden, self.head = nn.Linear(WIDTH, 20), nn.Linear(20, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        if self.how == "attention":
            x = self.mix(x, x, x, need_weights=False)[0]
        elif self.how == "encoder":
            x = self.mix(x)
        elif self.how in ("lstm", "gru"):
            x = self.mix(x)[0]
        elif self.how == "function":
            x = functional.linear(x, self.weight)
        elif self.how == "convolution":
            x = functional.conv1d(x.transpose(1, 2), self.weight[:, :, None]).transpose(1, 2)
        elif self.how == "matmul":
            x = x @ self.weight
        elif self.how == "einsum":
            x = torch.einsum("btc,dc->btd", x, self.weight)
        return self.head(torch.relu(self.hidden(x)).mean(1))


BEYOND = {
    "attention": 0,
    "encoder": 0,
    "lstm": TOKENS * 4 * WIDTH * WIDTH,
    "gru": TOKENS * 3 * WIDTH * WIDTH * 3,
    "function": TOKENS * WIDTH * WIDTH,
    "convolution": TOKENS * WIDTH * WIDTH,
    "matmul": TOKENS * WIDTH * WIDTH,
    "einsum": TOKENS * WIDTH * WIDTH,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("how", BEYOND)
def test_what_is_no_layer_is_counted(how: str, dtype: torch.dtype) -> None:
    model, images = randomise(Mixed(how).to(dtype)).eval(), data(dtype=dtype)[0][0]
    costs = count_costs(model, images)
    own = TOKENS * WIDTH * 12 + TOKENS * WIDTH * 20 + 20 * 5
    # What reads the inputs of a recurrent layer.
    own += TOKENS * WIDTH * WIDTH * {"lstm": 4, "gru": 3, "attention": 4, "encoder": 4}.get(how, 0)
    if how in ("attention", "encoder"):
        own += 2 * TOKENS * TOKENS * WIDTH
    if how == "encoder":
        own += 2 * TOKENS * WIDTH * 20
    assert costs.fixed_macs == BEYOND[how]
    assert costs.total("macs") == own + BEYOND[how]
    switches = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()
    assert switches == (True, True)


@pytest.mark.parametrize("how", ["attention", "lstm", "function"])
def test_what_is_no_layer_stays_when_layers_are_cut(how: str) -> None:
    model, batches = randomise(Mixed(how).double()).eval(), data()
    images = batches[0][0]
    groups = find_groups(model, images)
    ignore = ["mix", "mix.out_proj", "patches"] if how == "attention" else []
    plan = choose(model, batches, ratio=0.5, criterion="l1", ignore=ignore)
    removed = [(groups.prunable[c.group], c.remove) for c in plan.choices]
    apply_cuts(model, cuts_of(removed))
    assert count_costs(model, images).total("macs") == plan.macs_after
    if how != "lstm":  # Its inputs are channels of the layer before.
        assert plan.macs_before - plan.macs_after == 10 * (TOKENS * WIDTH + 5)


@pytest.mark.parametrize("how", ["attention", "encoder"])
def test_heads_take_their_products_with_them(how: str) -> None:
    model, images = randomise(Mixed(how).double()).eval(), data()[0][0]
    groups = find_groups(model, images)
    heads = groups.prunable["mix" if how == "attention" else "mix.self_attn"]
    assert heads.macs_per_channel == 4 * TOKENS * WIDTH * 4 + 2 * TOKENS * TOKENS * 4
    counts = dict.fromkeys(groups.prunable.values(), 1)
    apply_cuts(model, cuts_of([(group, [1]) for group in counts]))
    predicted = groups.costs.total("macs", counts)
    assert count_costs(model, images).total("macs") == pytest.approx(predicted, rel=1e-12)


@pytest.mark.parametrize("style", STYLES)
def test_layers_alone_leave_nothing_beyond(style: str) -> None:
    costs = count_costs(small(style, norm=True), data()[0][0])
    assert costs.fixed_macs == 0
    assert costs.total("macs") == sum(layer.macs for layer in costs.layers.values())
