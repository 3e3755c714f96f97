"""Small networks of every kind of coupling, data for them, and what a network looks like inside."""

from collections.abc import Callable, Iterable

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "prelu": nn.PReLU,
}
STYLES = (
    "plain",
    "residual",
    "concat",
    "depthwise",
    "two_consumers",
    "flatten",
    "transposed",
    "grouped",
    "grouped_transposed",
)
CLASSES = 5


class Small(nn.Module):
    """A stem, one part of the given style, and a linear head; images are 3x8x8.

    `width` counts the stem's removable channels; of a grouped style each is two of its filters.
    """

    def __init__(
        self, style: str, width: int = 4, *, stride: int = 1, act: str = "relu", norm: bool = False
    ) -> None:
        super().__init__()
        self.style = style
        make = ACTIVATIONS[act]
        filters = 2 * width if style.startswith("grouped") else width
        self.stem = nn.Conv2d(3, filters, 3, stride, padding=1, bias=not norm)
        self.norm = nn.BatchNorm2d(filters) if norm else nn.Identity()
        self.act = nn.PReLU(filters) if act == "prelu" else make()
        out = width + 1
        if style == "residual":
            self.inner = nn.Conv2d(width, out, 3, padding=1)
            self.back = nn.Conv2d(out, width, 1)
            out = width
        elif style == "concat":
            self.left = nn.Conv2d(width, 2, 1)
            self.right = nn.Conv2d(width, 3, 3, padding=1)
            self.join = nn.Conv2d(5, out, 1)
        elif style == "depthwise":
            self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
            self.project = nn.Conv2d(width, out, 1)
        elif style == "two_consumers":
            self.first = nn.Conv2d(width, out, 3, padding=1)
            self.second = nn.Conv2d(width, out, 1)
        elif style == "flatten":
            self.pool = nn.AdaptiveAvgPool2d(2)
            self.hidden = nn.Linear(4 * width, out)
        elif style == "transposed":
            self.up = nn.ConvTranspose2d(width, out, 2, 2)
        elif style == "grouped":
            self.grouped: nn.Module = nn.Conv2d(filters, 2 * out, 3, padding=1, groups=2)
            self.project = nn.Conv2d(2 * out, out, 1)
        elif style == "grouped_transposed":
            self.grouped = nn.ConvTranspose2d(filters, 2 * out, 3, padding=1, groups=2)
            self.project = nn.Conv2d(2 * out, out, 1)
        else:
            self.next = nn.Conv2d(width, out, 3, padding=1)
        self.last = make()
        self.head = nn.Linear(out, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(images)))
        if self.style == "flatten":
            return self.head(self.last(self.hidden(self.pool(x).flatten(1))))
        if self.style == "residual":
            x = x + self.back(self.last(self.inner(x)))
        elif self.style == "concat":
            x = self.join(torch.cat([self.left(x), self.right(x)], 1))
        elif self.style == "depthwise":
            x = self.project(self.act_between(self.depthwise(x)))
        elif self.style.startswith("grouped"):
            x = self.project(self.act_between(self.grouped(x)))
        elif self.style == "two_consumers":
            x = self.first(x) + self.second(x)
        elif self.style == "transposed":
            x = self.up(x)
        else:
            x = self.next(x)
        return self.head(self.last(x).mean((2, 3)))

    def act_between(self, maps: Tensor) -> Tensor:
        return torch.tanh(maps)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter and statistic anew, with no zeros and no ones left over from birth."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not tensor.is_floating_point():
            continue
        drawn = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        if tensor.ndim > 1:
            drawn = drawn * (2 / tensor[0].numel()) ** 0.5
        elif name.endswith("running_var") or name.endswith("weight"):
            drawn = 0.5 + drawn.abs()
        else:
            drawn = 0.3 * drawn
        tensor.data.copy_(drawn)
    return model


def small(style: str, width: int = 4, seed: int = 0, **options: object) -> nn.Module:
    """A random float64 network in evaluation mode."""
    return randomise(Small(style, width, **options).double(), seed).eval()  # type: ignore[arg-type]


@st.composite
def small_networks(draw: st.DrawFn, acts: Iterable[str] = ACTIVATIONS) -> nn.Module:
    """Random small networks in float64."""
    return small(
        draw(st.sampled_from(STYLES)),
        draw(st.integers(2, 6)),
        draw(st.integers(0, 10_000)),
        stride=draw(st.sampled_from([1, 2])),
        act=draw(st.sampled_from(sorted(acts))),
        norm=draw(st.booleans()),
    )


def data(
    count: int = 12,
    batch: int = 4,
    *,
    shape: tuple[int, ...] = (3, 8, 8),
    classes: int = CLASSES,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> list[tuple[Tensor, Tensor]]:
    """Random images with random labels, as a list of batches."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, *shape, generator=generator, dtype=dtype)
    labels = torch.randint(classes, (count,), generator=generator)
    return list(zip(images.split(batch), labels.split(batch), strict=True))


def state_of(model: nn.Module) -> dict[str, object]:
    """Everything about a network that a measurement must leave alone, comparable with ==."""
    found: dict[str, object] = {}
    for name, module in model.named_modules():
        found[f"{name} module"] = id(module)
        found[f"{name} training"] = module.training
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
            found[f"{name} {hooks}"] = len(getattr(module, hooks))
        found[f"{name} names"] = sorted(vars(module))
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        found[f"{name} identity"] = (id(parameter), parameter.data_ptr())
        found[f"{name} trained"] = parameter.requires_grad
        found[f"{name} grad"] = None if grad is None else (id(grad), _bits(grad))
        found[f"{name} hooks"] = len(parameter._backward_hooks or {})
    for name, tensor in model.state_dict(keep_vars=True).items():
        found[f"{name} bits"] = _bits(tensor)
    return found


def _bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()
