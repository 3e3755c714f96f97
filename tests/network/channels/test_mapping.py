"""Networks that take channels apart, join them, or take statistics over them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from selector.network.checkpoint import load_pruned, save_pruned
from selector.network.coupling import traced_graph
from selector.network.tracing import find_groups
from selector.oracle.oracle import loss_changes
from selector.planning.plan import Plan
from selector.pruning.apply import apply_plan
from selector.pruning.prune import prune
from tests.laws import check_law, some_channels
from tests.networks import data, randomise

IMAGES = data(4, 4)[0][0]


class Bodied(nn.Module):
    """A stem of 12 channels, what a test puts behind it, and a head over 12 channels."""

    def __init__(self, body: nn.Module, width: int = 12) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 12, 3, padding=1), body
        self.join, self.head = nn.Conv2d(width, 8, 1), nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.body(torch.relu(self.stem(images)))
        return self.head(torch.relu(self.join(x)).mean((2, 3)))


class Body(nn.Module):
    """Layers, numbers, and a forward pass as a function of the module and a tensor."""

    def __init__(self, run: Callable[..., Tensor], **parts: object) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def conv(inputs: int, outputs: int, groups: int = 1, size: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups)


def c2f(net: Body, x: Tensor) -> Tensor:
    y = list(net.enter(x).chunk(2, 1))
    y.append(y[-1] + net.inner(y[-1]))
    return torch.cat(y, 1)


def c2f_split(net: Body, x: Tensor) -> Tensor:
    y = list(net.enter(x).split((net.c, net.c), 1))
    y.append(y[-1] + net.inner(y[-1]))
    return torch.cat(y, 1)


def res2(net: Body, x: Tensor) -> Tensor:
    a, b, c = torch.split(net.enter(x), net.width, 1)
    b = torch.relu(net.one(a + b))
    return torch.cat([a, b, torch.relu(net.two(b + c))], 1)


def sliced(net: Body, x: Tensor) -> Tensor:
    y = net.enter(x)
    return torch.cat([net.one(y[:, : net.c]), y[:, net.c :]], 1)


def ghost(net: Body, x: Tensor) -> Tensor:
    y = net.enter(x)
    return torch.cat([y, net.cheap(y)], 1)[:, :12]


def option_a(net: Body, x: Tensor) -> Tensor:
    y = net.two(torch.relu(net.one(x)))
    return y + functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 3, 3))


def shuffle(net: Body, x: Tensor) -> Tensor:
    y = torch.relu(net.one(x))
    b, c, h, w = y.shape
    y = y.view(b, 3, c // 3, h, w).transpose(1, 2).reshape(b, c, h, w)
    return net.two(y)


def pixels(net: Body, x: Tensor) -> Tensor:
    return functional.pixel_shuffle(net.enter(x), 2)


def scaled(net: Body, x: Tensor) -> Tensor:
    return x + net.gamma * net.two(torch.relu(net.one(x))) + net.shift


def glu(net: Body, x: Tensor) -> Tensor:
    return net.two(functional.glu(net.one(x), 1))


def image_joined(net: Body, x: Tensor) -> Tensor:
    return torch.cat([x, net.one(x), torch.zeros_like(x[:, :1])], 1)


def twice(net: Body, x: Tensor) -> Tensor:
    return net.one(torch.relu(net.one(torch.relu(x))))


def windows(net: Body, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    y = x.permute(0, 2, 3, 1).reshape(b, 2, h // 2, 2, w // 2, c).transpose(2, 3).reshape(-1, 4, c)
    y = net.two(torch.tanh(net.one(torch.roll(y, 1, 1))))
    y = y.reshape(b, 2, 2, h // 2, w // 2, c).transpose(2, 3).reshape(b, h, w, c)
    return x + y.permute(0, 3, 1, 2)


def attention_to_few(net: Body, x: Tensor) -> Tensor:
    """Queries at every position, keys and values at pooled ones, as in pyramids."""
    b, _c, h, w = x.shape
    tokens = x.flatten(2).transpose(1, 2)
    few = functional.avg_pool2d(x, 2).flatten(2).transpose(1, 2)
    queries = net.q(tokens).view(b, h * w, net.heads, -1).transpose(1, 2)
    keys, values = net.kv(few).view(b, few.shape[1], 2, net.heads, -1).permute(2, 0, 3, 1, 4)
    if net.written_out:
        found = (queries @ keys.transpose(-2, -1)).softmax(-1) @ values
    else:
        found = functional.scaled_dot_product_attention(queries, keys, values)
    return x + net.out(found.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(b, -1, h, w)


def reading_few(written_out: bool) -> nn.Module:
    layers = {"q": nn.Linear(12, 16), "kv": nn.Linear(12, 32), "out": nn.Linear(16, 12)}
    return Bodied(Body(attention_to_few, heads=4, written_out=written_out, **layers))


def reduced(net: Body, x: Tensor) -> Tensor:
    """Keys at few positions, made by a layer whose width code takes for that of its inputs."""
    b, c, h, w = x.shape
    few = net.reduce(x).reshape(b, c, -1).transpose(1, 2)
    tokens = x.reshape(b, c, h * w).transpose(1, 2)
    queries, keys, values = (
        part(y).view(b, y.shape[1], net.heads, -1).transpose(1, 2)
        for part, y in ((net.q, tokens), (net.k, few), (net.v, few))
    )
    found = functional.scaled_dot_product_attention(queries, keys, values)
    return x + net.out(found.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(b, -1, h, w)


def learnt_tokens(net: Body, x: Tensor) -> Tensor:
    """As many learnt tokens as there are heads go through attention with those of the image."""
    b, _c, h, w = x.shape
    y = torch.cat([net.tokens.expand(b, -1, -1), x.flatten(2).transpose(1, 2)], 1)
    q, k, v = net.qkv(y).reshape(b, h * w + 4, 3, net.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    if net.written_out:
        found = (q @ k.transpose(-2, -1)).softmax(-1) @ v
    else:
        found = functional.scaled_dot_product_attention(q, k, v)
    y = y + net.out(found.transpose(1, 2).flatten(2))
    return y[:, 4:].transpose(1, 2).reshape(b, -1, h, w)


def with_tokens(written_out: bool) -> nn.Module:
    layers = {"qkv": nn.Linear(12, 36), "out": nn.Linear(12, 12)}
    tokens = nn.Parameter(torch.ones(1, 4, 12))
    return Bodied(Body(learnt_tokens, heads=4, tokens=tokens, written_out=written_out, **layers))


def masked_tokens(net: Body, x: Tensor) -> Tensor:
    """Some positions get a learnt token in place of what they were."""
    y = x.permute(0, 2, 3, 1).clone()
    chosen = torch.arange(y.shape[1] * y.shape[2]).view(y.shape[1:3]) % 5 == 0
    y = y.index_put((chosen.expand(len(y), -1, -1),), net.token)
    return net.two(torch.relu(net.one(y.permute(0, 3, 1, 2))))


def attention(net: Body, x: Tensor) -> Tensor:
    b, _c, h, w = x.shape
    y = x.flatten(2).transpose(1, 2)
    q, k, v = net.qkv(y).reshape(b, h * w, 3, net.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h * w, -1)
    return x + net.out(y).transpose(1, 2).reshape(b, -1, h, w)


def attention_written_out(net: Body, x: Tensor) -> Tensor:
    b, _c, h, w = x.shape
    y = x.flatten(2).transpose(1, 2)
    parts = (
        p(y).view(b, h * w, net.heads, net.size).transpose(1, 2) for p in (net.q, net.k, net.v)
    )
    q, k, v = parts
    y = ((q * net.size**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
    y = y.transpose(1, 2).reshape(b, h * w, net.heads * net.size)
    return x + net.out(y).transpose(1, 2).reshape(b, -1, h, w)


def instance(net: Body, x: Tensor) -> Tensor:
    return net.norm(net.one(x))


class Frozen(nn.Module):
    """BatchNorm whose statistics and scales are buffers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "mean"):
            self.register_buffer(name, torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.reshape(1, -1, 1, 1) * 1.5
        return x * scale + (self.bias - self.mean * self.weight).reshape(1, -1, 1, 1)


def series(net: Body, x: Tensor) -> Tensor:
    hidden, _ = net.lstm(torch.relu(net.one(x)).flatten(2).transpose(1, 2))
    return hidden.transpose(1, 2).unflatten(2, x.shape[2:])


def mixed(net: Body, x: Tensor) -> Tensor:
    parts = torch.split(functional.hardswish(net.enter(x)), net.splits, 1)
    return torch.cat([layer(part) for layer, part in zip(net.layers, parts, strict=True)], 1)


def gated(net: Body, x: Tensor) -> Tensor:
    gate, one, two = net.enter(x).split(net.splits, 1)
    return functional.logsigmoid(gate) * torch.cat([one, net.layer(two)], 1)


def scaled_by_a_shape(net: Body, x: Tensor) -> Tensor:
    return x + net.two(torch.relu(net.one(x))) * torch.reshape(net.gamma, net.shape)


def patches(net: Body, x: Tensor) -> Tensor:
    columns = functional.unfold(torch.relu(net.one(x)), 3, padding=1)
    return functional.fold(torch.sigmoid(columns), x.shape[2:], 3, padding=1)


def channel_attention(net: Body, x: Tensor) -> Tensor:
    y = torch.relu(net.one(x))
    weights = net.along(y.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(3)
    return net.two(y) * torch.sigmoid(net.three(y * torch.sigmoid(weights)))


CASES: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "chunk": (
        lambda: Bodied(Body(c2f, enter=conv(12, 8), inner=conv(4, 4, size=3)), 12),
        {"stem", "body.enter", "join"},
    ),
    "split by a number": (
        lambda: Bodied(Body(c2f_split, c=4, enter=conv(12, 8), inner=conv(4, 4, size=3)), 12),
        {"stem", "body.enter", "join"},
    ),
    "scales": (
        lambda: Bodied(Body(res2, width=4, enter=conv(12, 12), one=conv(4, 4), two=conv(4, 4))),
        {"stem", "body.enter", "body.two", "join"},
    ),
    "slices": (
        lambda: Bodied(Body(sliced, c=4, enter=conv(12, 10), one=conv(4, 6)), 12),
        {"stem", "body.enter", "body.one", "join"},
    ),
    "ghost": (
        lambda: Bodied(Body(ghost, enter=conv(12, 6), cheap=conv(6, 6, 6, 3))),
        {"stem", "body.enter", "join"},
    ),
    "option A": (
        lambda: Bodied(Body(option_a, one=nn.Conv2d(12, 7, 3, 2, padding=1), two=conv(7, 18)), 18),
        {"stem", "body.one", "join"},
    ),
    "sizes in a list": (
        lambda: Bodied(
            Body(
                mixed,
                splits=[4, 4],
                enter=conv(12, 8),
                layers=nn.ModuleList([conv(4, 4, 4, 3), conv(4, 4, 4, 5)]),
            ),
            8,
        ),
        {"stem", "body.enter", "join"},
    ),
    "unequal sizes in a tuple": (
        lambda: Bodied(
            Body(gated, splits=(9, 5, 4), enter=conv(12, 18), layer=conv(4, 4, 4, 3)), 9
        ),
        {"stem", "body.enter", "join"},
    ),
    "a shape in a tuple": (
        lambda: Bodied(
            Body(
                scaled_by_a_shape,
                one=conv(12, 9),
                two=conv(9, 12),
                gamma=nn.Parameter(torch.ones(12)),
                shape=(12, 1, 1),
            )
        ),
        {"stem", "body.one", "join"},
    ),
    "patches": (lambda: Bodied(Body(patches, one=conv(12, 9)), 9), {"stem", "body.one", "join"}),
    "channel shuffle": (
        lambda: Bodied(Body(shuffle, one=conv(12, 12), two=conv(12, 12))),
        {"stem", "body.one", "body.two", "join"},
    ),
    "pixel shuffle": (
        lambda: Bodied(Body(pixels, enter=conv(12, 12)), 3),
        {"stem", "body.enter", "join"},
    ),
    "layer scale": (
        lambda: Bodied(
            Body(
                scaled,
                one=conv(12, 9),
                two=conv(9, 12),
                gamma=nn.Parameter(torch.ones(12, 1, 1)),
                shift=nn.Parameter(torch.ones(1, 12, 1, 1)),
            )
        ),
        {"stem", "body.one", "join"},
    ),
    "gated linear unit": (
        lambda: Bodied(Body(glu, one=conv(12, 10), two=conv(5, 12))),
        {"stem", "body.one", "body.two", "join"},
    ),
    "joined with what is fixed": (
        lambda: Bodied(Body(image_joined, one=conv(12, 5)), 18),
        {"stem", "body.one", "join"},
    ),
    "called twice": (lambda: Bodied(Body(twice, one=conv(12, 12))), {"stem", "join"}),
    "windows": (
        lambda: Bodied(Body(windows, one=nn.Linear(12, 9), two=nn.Linear(9, 12))),
        {"stem", "body.one", "join"},
    ),
    "frozen norm": (
        lambda: Bodied(nn.Sequential(conv(12, 9), Frozen(9), nn.ReLU(), conv(9, 12))),
        {"stem", "body.0", "body.3", "join"},
    ),
    "instance norm": (
        lambda: Bodied(Body(instance, one=conv(12, 9), norm=nn.InstanceNorm2d(9, affine=True)), 9),
        {"stem", "body.one", "join"},
    ),
    "group norm of single channels": (
        lambda: Bodied(Body(instance, one=conv(12, 9), norm=nn.GroupNorm(9, 9)), 9),
        {"stem", "body.one", "join"},
    ),
    "recurrent": (
        lambda: Bodied(
            Body(
                series,
                one=conv(12, 9),
                lstm=nn.LSTM(9, 6, batch_first=True, bidirectional=True),
            )
        ),
        {"stem", "body.one", "join"},
    ),
    "heads": (
        lambda: Bodied(Body(attention, heads=4, qkv=nn.Linear(12, 48), out=nn.Linear(16, 12))),
        {"stem", "body.qkv", "join"},
    ),
    "heads that read fewer positions": (
        partial(reading_few, written_out=False),
        {"stem", "body.q", "join"},
    ),
    "heads that read fewer positions, written out": (
        partial(reading_few, written_out=True),
        {"stem", "body.q", "join"},
    ),
    **{
        f"learnt tokens, {how}": (
            partial(with_tokens, how == "written out"),
            {"stem", "body.qkv", "join"},
        )
        for how in ("fused", "written out")
    },
    "a width taken for another's": (
        lambda: Bodied(
            Body(
                reduced,
                heads=4,
                reduce=nn.Conv2d(12, 12, 2, stride=2),
                q=nn.Linear(12, 16),
                k=nn.Linear(12, 16),
                v=nn.Linear(12, 16),
                out=nn.Linear(16, 12),
            )
        ),
        {"stem", "body.q", "join"},
    ),
    "masked tokens": (
        lambda: Bodied(
            Body(
                masked_tokens,
                token=nn.Parameter(torch.ones(12)),
                one=conv(12, 7),
                two=conv(7, 12),
            )
        ),
        {"stem", "body.one", "body.two", "join"},
    ),
    "heads, written out": (
        lambda: Bodied(
            Body(
                attention_written_out,
                heads=4,
                size=3,
                **{name: nn.Linear(12, 12) for name in ("q", "k", "v", "out")},
            )
        ),
        {"stem", "body.q", "join"},
    ),
}


class Grn(nn.Module):
    """Global response normalisation, which divides by a mean over channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        size = torch.norm(x, p=2, dim=(2, 3), keepdim=True)
        share = size / (size.mean(1, keepdim=True) + 1e-6)
        return x * share * self.gamma[:, None, None] + self.beta[:, None, None] + x


class Pooled(nn.Module):
    """Mean and maximum over channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)


class SpatialGate(nn.Module):
    """A gate for every place, made of statistics over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.pooled, self.conv = Pooled(), conv(2, 1, size=3)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv(self.pooled(x)))


class Standardised(nn.Conv2d):
    """A convolution whose weight is standardised over its inputs, by an operator or by hand."""

    def __init__(self, inputs: int, outputs: int, *, by_hand: bool) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.by_hand = by_hand
        self.gain = nn.Parameter(torch.ones(outputs))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.flatten(1)
        if self.by_hand:
            rows = rows - rows.mean(1, keepdim=True)
            rows = rows * (rows.var(1, keepdim=True) + 1e-5).rsqrt() * self.gain[:, None]
        else:
            rows = functional.batch_norm(
                rows.unsqueeze(0), None, None, self.gain, training=True, eps=1e-5
            )[0]
        return functional.conv2d(x, rows.view_as(self.weight), self.bias, padding=1)


def standardised(by_hand: bool) -> nn.Module:
    one, two = Standardised(12, 9, by_hand=by_hand), Standardised(9, 9, by_hand=by_hand)
    return Bodied(nn.Sequential(one, nn.ReLU(), two, nn.ReLU(), conv(9, 12)))


class Last(nn.Module):
    """A layer over the last dimension, of maps."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def between(norm: nn.Module) -> nn.Module:
    return Bodied(nn.Sequential(conv(12, 9), norm, nn.ReLU(), conv(9, 12)))


def transformer(net: Body, x: Tensor) -> Tensor:
    b, _c, h, w = x.shape
    y = net.encoder(x.flatten(2).transpose(1, 2) + net.position)
    return y.transpose(1, 2).reshape(b, -1, h, w)


STATISTICS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "layer norm": (
        lambda: between(Last(nn.LayerNorm(9))),
        {"stem", "body.0", "body.3", "join"},
    ),
    "layer norm without parameters": (
        lambda: between(Last(nn.LayerNorm(9, elementwise_affine=False))),
        {"stem", "body.0", "body.3", "join"},
    ),
    "rms norm": (lambda: between(Last(nn.RMSNorm(9))), {"stem", "body.0", "body.3", "join"}),
    "group norm": (lambda: between(nn.GroupNorm(3, 9)), {"stem", "body.0", "body.3", "join"}),
    "layer norm over maps": (
        lambda: between(nn.LayerNorm([9, 8, 8])),
        {"stem", "body.0", "body.3", "join"},
    ),
    "one group": (lambda: between(nn.GroupNorm(1, 9)), {"stem", "body.0", "body.3", "join"}),
    "response norm": (lambda: between(Grn(9)), {"stem", "body.0", "body.3", "join"}),
    "spatial gate": (lambda: between(SpatialGate()), {"stem", "body.0", "body.3", "join"}),
    **{
        f"standardised weights, {how}": (
            partial(standardised, how == "by hand"),
            {"stem", "body.0", "body.2", "body.4", "join"},
        )
        for how in ("by an operator", "by hand")
    },
    "residual stream": (
        lambda: Bodied(
            nn.Sequential(
                Body(
                    lambda net, x: x + net.two(torch.relu(net.one(net.norm(x)))),
                    norm=Last(nn.LayerNorm(12)),
                    one=conv(12, 7),
                    two=conv(7, 12),
                ),
                Last(nn.LayerNorm(12)),
            )
        ),
        {"stem", "body.0.one", "join"},
    ),
    "transformer": (
        lambda: Bodied(
            Body(
                transformer,
                encoder=nn.TransformerEncoderLayer(12, 2, 10, batch_first=True),
                position=nn.Parameter(torch.ones(1, 64, 12)),
            )
        ),
        {"stem", "body.encoder.self_attn", "body.encoder.linear1", "join"},
    ),
}


def check_exact(build: Callable[[], nn.Module], expected: set[str]) -> None:
    """These groups are found, and each alone and all together keep the law."""
    model = randomise(build().double()).eval()
    groups = find_groups(model, IMAGES)
    assert set(groups.prunable) == expected, groups.refused
    generator = torch.Generator().manual_seed(0)
    removals = [(group, some_channels(group, generator)) for group in groups.prunable.values()]
    for removal in removals:
        check_law(model, IMAGES, [removal], 1e-9)
    check_law(model, IMAGES, removals, 1e-9)


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_are_taken_over_the_channels_that_are_kept(name: str) -> None:
    check_exact(*STATISTICS[name])


@pytest.mark.parametrize("name", CASES)
def test_channels_that_are_taken_apart_and_joined_are_pruned_exactly(name: str) -> None:
    check_exact(*CASES[name])


def test_a_layer_of_an_unknown_kind_is_refused_by_name() -> None:
    class Foreign(nn.Module):
        """A linear layer with its weight the other way round, as GPT-2 has it."""

        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(inputs, outputs))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    body = nn.Sequential(Last(Foreign(12, 9)), nn.ReLU(), Last(Foreign(9, 7)), nn.ReLU())
    groups = find_groups(randomise(Bodied(body, 7).double()).eval(), IMAGES)
    assert set(groups.prunable) == {"join"}
    assert "no layer but 'body.0.layer' reads it" in groups.refused["stem"]
    assert "Foreign 'body.0.layer' multiplies by its 'weight'" in groups.refused["body.0.layer"]
    assert "put nn.Linear" in groups.refused["body.0.layer"]


def test_channels_that_run_as_positions_are_found_out_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = Body(
        channel_attention,
        one=conv(12, 9),
        along=nn.Conv1d(1, 1, 3, padding=1),
        two=conv(9, 12),
        three=conv(9, 12),
    )
    model = randomise(Bodied(body).double()).eval()
    # Torch-Pruning takes each of the nine channels for nine, those for 81, and so on.
    monkeypatch.setattr(traced_graph, "MOST_POSITIONS", 80)
    groups = find_groups(model, IMAGES)
    assert groups.prunable.keys() == {"stem", "join", "body.two"}
    assert "body.one" in groups.refused
    for group in groups.prunable.values():
        check_law(model, IMAGES, [(group, [0, 2])], 1e-9)


@pytest.mark.parametrize(
    "name",
    [
        "scales",
        "layer scale",
        "heads",
        "residual stream",
        "recurrent",
        "option A",
        "sizes in a list",
        "a shape in a tuple",
        "a width taken for another's",
        "standardised weights, by an operator",
    ],
)
def test_a_pruned_network_is_trained_saved_and_built_again(name: str, tmp_path: Path) -> None:
    build, _ = {**CASES, **STATISTICS}[name]
    model, batches = randomise(build().double()).eval(), data(8, 4)
    result = prune(model, batches, ratio=0.4, rounds=2)
    small = result.model
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    images, labels = batches[0]
    functional.cross_entropy(small.train()(images), labels).backward()
    torch.optim.SGD(small.parameters(), 0.01).step()
    save_pruned(small, tmp_path / "small.safetensors")
    again = load_pruned(lambda: build().double(), tmp_path / "small.safetensors")
    assert torch.equal(again.eval()(images), small.eval()(images))
    result.plan.save(tmp_path / "plan.json")
    replayed = apply_plan(model, Plan.load(tmp_path / "plan.json"))
    assert [p.shape for p in replayed.parameters()] == [p.shape for p in small.parameters()]


@pytest.mark.parametrize(
    "name", ["heads", "layer norm", "response norm", "standardised weights, by hand", "transformer"]
)
def test_all_engines_measure_the_same_removals(name: str) -> None:
    build, _ = {**CASES, **STATISTICS}[name]
    model, batches = randomise(build().double()).eval(), data(8, 4)
    for group in find_groups(model, IMAGES).prunable.values():
        fast, masked, reference = (
            [
                change.nats
                for change in loss_changes(model, batches, group.name, [[0], [1]], engine=engine)
            ]
            for engine in ("fast", "masked", "reference")
        )
        assert masked == pytest.approx(reference, abs=1e-9)
        assert fast == pytest.approx(reference, abs=1e-9)
