"""Checks of a pruned network that do not ask the product: work left, exactness, training, file."""

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from selector.data.forward import float_tensors
from selector.network.surgery import Cut
from selector.statistics.leaves import only_trained
from training.benchmarks.coverage.masking import Places, masked_copy
from training.benchmarks.coverage.subject import Subject, energy, objects_in

FRESH = 4
"""Images that nothing was pruned or repaired by."""
SEED = 7777
AS_TRAINED = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
"""Layers that are as in evaluation mode while losses are compared."""
TOLERANCE = {"float64": 1e-6, "float32": 1e-3}
"""Largest difference of outputs relative to the largest output, by the type computed in."""

Build = Callable[[], nn.Module]


@dataclass(frozen=True)
class Exactness:
    """How near the cut network is to the masked one."""

    gap: float
    """Largest difference, relative to the largest output; infinite where shapes differ."""
    changed: float
    """What the removal changes in the outputs, likewise: no gap says anything where this is 0."""
    precision: str

    @property
    def exact(self) -> bool:
        """Whether the two are the same but for rounding."""
        return self.gap <= TOLERANCE[self.precision]


def run(model: nn.Module, inputs: object) -> object:
    """Call a network with images; a detector, which reads a list of them, for its losses.

    What a detector finds is a choice among thousands of boxes, and with random weights nothing: its
    losses tell of every layer. Only its parts for training are in that mode.
    """
    if not isinstance(inputs, list):
        return model(inputs)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)  # Some boxes are sampled.
        for module in model.modules():
            module.training = not isinstance(module, AS_TRAINED)
        try:
            return model(inputs, objects_in(inputs))
        finally:
            model.eval()


@torch.no_grad()
def macs_of(model: nn.Module, subject: Subject) -> float:
    """Multiply-accumulates of one image by PyTorch's own counter of operators."""
    images, counter = subject.inputs(2, SEED), FlopCounterMode(display=False)
    if any(isinstance(layer, nn.RNNBase) for layer in model.modules()):
        # On a CPU a recurrent layer is one operator, which the counter does not know.
        model, images = copy.deepcopy(model).to("meta"), _moved(images, torch.device("meta"))
    # The counter fails on bare tokens that take a gradient.
    with _counted(), only_trained(model, ()), counter:
        run(model.eval(), images)
    return counter.get_total_flops() / 2 / 2


@contextmanager
def _counted() -> Iterator[None]:
    """Context in which attention runs as products that the counter knows."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@torch.no_grad()
def exactness(
    original: nn.Module,
    cut: nn.Module,
    cuts: Sequence[Cut],
    subject: Subject,
    statistics: Mapping[str, Places] | None = None,
) -> Exactness:
    """Compare the masked original with the cut network on fresh images, in float64 if possible.

    Args:
        original: The unpruned network.
        cut: It without the channels, neither recalibrated nor repaired.
        cuts: What was removed, in positions of the unpruned network.
        subject: Gives the images.
        statistics: See `masked_copy`.
    """
    images = subject.inputs(FRESH, SEED)
    try:
        wide = [copy.deepcopy(network).double().eval() for network in (original, cut)]
        double = masked_copy(wide[0], cuts, statistics)
        found = [_outputs(n, _moved(images, torch.float64)) for n in (wide[0], double, wide[1])]
        if all(t.dtype == torch.float64 for tensors in found for t in tensors):
            return _compared("float64", *found)
    except RuntimeError:  # A type that is fixed in the forward pass.
        pass
    networks = (original, masked_copy(original, cuts, statistics), cut)
    return _compared("float32", *(_outputs(network, images) for network in networks))


def _outputs(model: nn.Module, images: object) -> list[Tensor]:
    return float_tensors(run(model.eval(), images))


def _moved(images: object, where: torch.device | torch.dtype) -> object:
    """Images, or a list of them, on another device or of another type."""
    if isinstance(images, list):
        return [image.to(where) for image in images]
    assert isinstance(images, Tensor)
    return images.to(where)


def _compared(
    precision: str, whole: Sequence[Tensor], expected: Sequence[Tensor], actual: Sequence[Tensor]
) -> Exactness:
    if [t.shape for t in expected] != [t.shape for t in actual]:
        return Exactness(float("inf"), 0.0, precision)
    scale = max((float(t.abs().max()) for t in expected if t.numel()), default=1.0)
    changed = _largest(whole, expected)
    return Exactness(_largest(expected, actual) / scale, changed / scale, precision)


def _largest(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    pairs = [(a, b) for a, b in zip(some, others, strict=True) if a.shape == b.shape and a.numel()]
    return max((float((a - b).abs().max()) for a, b in pairs), default=0.0)


def training_fault(model: nn.Module, subject: Subject) -> str | None:
    """Why one step of training does not work on a pruned network; None where it does."""
    trained = copy.deepcopy(model).train()
    for parameter in trained.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.SGD(trained.parameters(), lr=1e-3)
    try:
        with torch.enable_grad():
            loss = energy(_trained_outputs(trained, subject), None)
            torch.autograd.backward(loss)
        optimizer.step()
    except Exception as error:
        return f"training step: {type(error).__name__}: {error}"
    odd = [
        name
        for name, parameter in trained.named_parameters()
        if parameter.grad is not None and parameter.grad.shape != parameter.shape
    ]
    if not any(p.grad is not None for p in trained.parameters()):
        return "training step: no parameter has a gradient"
    return f"training step: the gradient of {odd[0]} has another shape" if odd else None


def _trained_outputs(model: nn.Module, subject: Subject) -> object:
    """Outputs in training mode; a detector's are its losses."""
    images = subject.inputs(4, SEED)
    return model(images, objects_in(images)) if isinstance(images, list) else run(model, images)


@torch.no_grad()
def file_fault(
    model: nn.Module,
    subject: Subject,
    save: Callable[[nn.Module, Path], None],
    load: Callable[[Build, Path], nn.Module],
) -> str | None:
    """Why a pruned network does not come back from a file as it was; None where it does."""
    images = subject.inputs(2, SEED)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small"
        try:
            save(model, path)
            back = load(subject.build, path).eval()
            one, other = (float_tensors(run(m, images)) for m in (model.eval(), back))
        except Exception as error:
            return f"checkpoint: {type(error).__name__}: {error}"
    if [t.shape for t in one] != [t.shape for t in other] or _largest(one, other) != 0:
        return f"checkpoint: outputs differ by {_largest(one, other):.2g} after loading"
    return None
