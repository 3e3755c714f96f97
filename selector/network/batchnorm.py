"""BatchNorm statistics estimated from calibration images."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from selector.data.batches import Batches, batch_size, check_batches
from selector.data.forward import call, evaluating, probe_inputs, read
from selector.network.hooks import Hook, forward_hooks
from selector.network.layers import NORMALISATION

MEMORY_BYTES = 2**30
"""What the activations of the images that are normalised together may take."""
LEAST_BATCH = 16
"""Fewer images do not have the statistics that BatchNorm will have after recalibration."""
ALIVE = 4
"""The largest activations of a forward pass that are in memory at once, at a guess."""


def recalibrate_batchnorm(
    model: nn.Module, batches: Batches, *, memory_bytes: int = MEMORY_BYTES
) -> int:
    """Estimate the running statistics of all BatchNorm layers from some images, in place.

    Mean and variance are those of all values that reach a layer, as in a single training batch of
    all images. How the images come in batches changes nothing: they are put together again into
    batches as large as memory allows, all images in one if they fit. (Of more images, each part is
    normalised by its own statistics, and those of the parts are pooled by count.) Inputs that
    cannot be put together are run in the batches in which they come.

    Layers that do not run, or that see a single value per channel, keep their statistics.

    Args:
        model: The network; nothing but the statistics is changed.
        batches: Calibration images; only the inputs are used. Read once or twice.
        memory_bytes: What the activations of the images run together may take.

    Returns:
        Number of layers recalibrated.
    """
    check_batches(batches)
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, NORMALISATION) and layer.running_mean is not None
    }
    if not layers:
        return 0
    with torch.no_grad(), evaluating(model):
        most = _images_that_fit(model, batches, memory_bytes)
        try:
            found = _measured(model, layers, _regrouped(model, batches, most))
        except Exception:  # A size of batches that is fixed in the network; else it raises again.
            found = _measured(model, layers, (inputs for inputs, _ in read(model, batches)))
        for name, moments in found.items():
            moments.store(layers[name])
    return len(found)


@dataclass
class _PooledMoments:
    """Mean and squared deviations of each channel's values, float64, pooled over calls."""

    count: int
    mean: Tensor
    squares: Tensor
    """Sum of the squared deviations from the mean."""
    calls: int = 1

    @classmethod
    def of(cls, values: Tensor) -> "_PooledMoments":
        """Moments of a layer's inputs, shape (images, channels, ...), which are not copied."""
        count = values.numel() // max(1, values.shape[1])
        precision = torch.float64 if values.dtype == torch.float64 else torch.float32
        mean, variance = values.new_zeros((2, values.shape[1]), dtype=precision)
        # The layer's own kernel writes the moments of a batch where they weigh all.
        torch.batch_norm(values, None, None, mean, variance, True, 1.0, 1.0, False)
        return cls(count, mean.double(), variance.double() * (count - 1))

    def add(self, other: "_PooledMoments") -> None:
        """Take in the moments of other values."""
        count = self.count + other.count
        gap = other.mean - self.mean
        self.mean = self.mean + gap * (other.count / count)
        weight = self.count * other.count / count
        self.squares = self.squares + other.squares + gap.square() * weight
        self.count, self.calls = count, self.calls + other.calls

    def store(self, layer: nn.Module) -> None:
        """Make these a layer's running statistics, as one training batch of all values would."""
        assert isinstance(layer, NORMALISATION)
        if layer.running_mean is not None and layer.running_var is not None:
            layer.running_mean.copy_(self.mean)
            layer.running_var.copy_(self.squares / (self.count - 1))
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.fill_(self.calls)


def _measured(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterator[object]
) -> dict[str, _PooledMoments]:
    """Moments of what reaches every layer; layers go by the statistics of the batch at hand."""
    found: dict[str, _PooledMoments] = {}
    kept = {name: (layer.running_mean, layer.running_var) for name, layer in layers.items()}

    def measuring(name: str) -> Hook:
        def measure(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            moments = _PooledMoments.of(args[0])
            alone = moments.count < 2
            # Of one value there is no variance: the layer goes by the statistics that it has.
            layer.running_mean, layer.running_var = kept[name] if alone else (None, None)  # type: ignore[assignment]
            if not alone and name in found:
                found[name].add(moments)
            elif not alone:
                found[name] = moments

        return measure

    hooks = {name: measuring(name) for name in layers}
    try:
        with forward_hooks(model, hooks, pre=True):
            for inputs in batches:
                call(model, inputs)
    finally:
        for name, layer in layers.items():
            layer.running_mean, layer.running_var = kept[name]
    return found


def _images_that_fit(model: nn.Module, batches: Batches, memory_bytes: int) -> int:
    """Images whose activations fit into memory, whatever the sizes of the batches; at least 16."""
    largest = 0
    inputs = probe_inputs(model, batches, 2)

    def note(layer: nn.Module, args: tuple[object, ...], output: object) -> None:
        nonlocal largest
        for leaf in pytree.tree_leaves(output):
            if isinstance(leaf, Tensor):
                largest = max(largest, leaf.numel() * leaf.element_size())

    hooks: dict[str, Hook] = {name: note for name, _ in model.named_modules()}
    # A network that does not take so few images has shown its first layers, which are large.
    with forward_hooks(model, hooks), suppress(Exception):
        call(model, inputs)
    return max(16, memory_bytes * batch_size(inputs) // max(1, ALIVE * largest))


def _regrouped(model: nn.Module, batches: Batches, most: int) -> Iterator[object]:
    """The inputs in parts of `most` images, the last of up to twice as many less one.

    So parts depend on the images alone, and none is small while there are others.
    """
    waiting: list[_Inputs] = []
    for inputs, targets in read(model, batches):
        part = _Inputs.of(inputs, targets)
        if waiting and not waiting[-1].goes_with(part):
            yield _Inputs.joined(waiting).whole()
            waiting = []
        waiting.append(part)
        while sum(part.images for part in waiting) >= 2 * most:
            whole = _Inputs.joined(waiting)
            yield whole.rows(0, most).whole()
            waiting = [whole.rows(most, whole.images)]
    if waiting:
        yield _Inputs.joined(waiting).whole()


@dataclass(frozen=True, eq=False)
class _Inputs:
    """Inputs of some images, taken apart so that they can be joined with those of others."""

    leaves: tuple[object, ...]
    structure: pytree.TreeSpec
    images: int

    @classmethod
    def of(cls, inputs: object, targets: object) -> "_Inputs":
        """Take a batch apart; images are counted by targets, or by rows of the first tensor."""
        leaves, structure = pytree.tree_flatten(inputs)
        images = batch_size(inputs)
        if isinstance(targets, Tensor) and targets.ndim:
            if any(isinstance(x, Tensor) and x.shape[:1] == targets.shape[:1] for x in leaves):
                images = len(targets)
        return cls(tuple(leaves), structure, images)

    def by_image(self, leaf: object) -> bool:
        """Whether a leaf has a row for every image."""
        return isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == self.images

    def goes_with(self, other: "_Inputs") -> bool:
        """Whether rows of one can follow those of the other, and the rest is the same."""
        if self.structure != other.structure:
            return False
        alike = 0
        for one, two in zip(self.leaves, other.leaves, strict=True):
            if not (isinstance(one, Tensor) and isinstance(two, Tensor)):
                if isinstance(one, Tensor) or isinstance(two, Tensor) or one != two:
                    return False
            elif self.by_image(one) and other.by_image(two):
                if one.shape[1:] != two.shape[1:] or one.dtype != two.dtype:
                    return False
                alike += len(one) == len(two) and bool(torch.equal(one, two))
            elif one.shape != two.shape or not torch.equal(one, two):
                return False
        # A table that all images share may have as many rows as there are images, by chance.
        rows = sum(self.by_image(leaf) for leaf in self.leaves)
        return alike in (0, rows)

    @classmethod
    def joined(cls, parts: Sequence["_Inputs"]) -> "_Inputs":
        """The images of all parts, one after the other."""
        first = parts[0]
        if len(parts) == 1:
            return first
        leaves = [
            torch.cat([part.leaves[place] for part in parts])  # type: ignore[misc]
            if first.by_image(leaf)
            else leaf
            for place, leaf in enumerate(first.leaves)
        ]
        return cls(tuple(leaves), first.structure, sum(part.images for part in parts))

    def rows(self, start: int, stop: int) -> "_Inputs":
        """Some of the images."""
        leaves = (leaf[start:stop] if self.by_image(leaf) else leaf for leaf in self.leaves)  # type: ignore[index]
        return _Inputs(tuple(leaves), self.structure, stop - start)

    def whole(self) -> object:
        """The inputs as the network is called with them."""
        found: object = pytree.tree_unflatten(self.leaves, self.structure)
        return found


def has_batchnorm(model: nn.Module) -> bool:
    """Whether a network has BatchNorm, whose statistics are measured again after a cut."""
    return any(isinstance(layer, NORMALISATION) for layer in model.modules())


def has_batch_statistics(model: nn.Module, batches: Batches) -> bool:
    """Whether a network has BatchNorm, and every batch the images to stand for recalibration."""
    return has_batchnorm(model) and all(batch_size(*batch) >= LEAST_BATCH for batch in batches)


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Context in which BatchNorm goes by every batch's own statistics, as after recalibration.

    One pass instead of two; the statistics that the layers keep are not touched.
    """
    kept = [
        (layer, layer.running_mean, layer.running_var)
        for layer in model.modules()
        if isinstance(layer, NORMALISATION)
    ]
    try:
        for layer, _, _ in kept:
            layer.running_mean = layer.running_var = None
        yield
    finally:
        for layer, mean, variance in kept:
            layer.running_mean, layer.running_var = mean, variance
