"""The fast engine: a batch's values are kept, and what depends on a removal is computed again."""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from selector.data.batches import batch_size, rows
from selector.data.forward import device_of
from selector.network.coupling.law import exact, largest
from selector.network.groups import Group
from selector.network.layers import CONVOLUTION
from selector.oracle.fx_steps import StepRunner, Steps, UntraceableError, take_apart
from selector.oracle.masked_engine import Masked, Removal
from selector.oracle.recompute import Recomputation

TOLERANCE = 1e-3
"""Largest difference to the masked network, relative to its largest output (float32)."""

CACHE_BYTES = {"cpu": 2**21}
"""Largest value of a batch that is read and written at full speed; larger batches go in parts."""
COLUMNS = 512
"""Positions times images below which a convolution no longer fills its matrix product."""

_steps: WeakKeyDictionary[nn.Module, Steps | str] = WeakKeyDictionary()
_held: WeakKeyDictionary[nn.Module, dict[str, bool]] = WeakKeyDictionary()
"""Network -> group name -> whether its trace agreed with the masked network when it was tried."""


class Fast:
    """Keep a batch's values; compute again only what depends on the layers that read the channels.

    Each group is tried once against the masked network: where that differs (a trace that does not
    hold for these inputs), the group is run masked from then on.
    """

    def __init__(self, model: nn.Module, together: int = 1, check: bool = True) -> None:
        """Trace the network, or find it traced.

        Args:
            model: The network, in evaluation mode; its weights must not change while this is used.
            together: Candidates of a group that are run as one batch.
            check: Try groups again that earlier engines of this network have tried.

        Raises:
            UntraceableError: It cannot be taken apart.
        """
        self._masked = Masked(model)
        known = _steps.get(model)
        if known is None:
            try:
                known = take_apart(model)
            except UntraceableError as error:
                known = str(error)
            _steps[model] = known
        if isinstance(known, str):
            raise UntraceableError(known)
        self._runner = StepRunner(model, known)
        self.together = max(1, together)
        self._device = device_of(model).type
        self._plans: dict[Group, Recomputation] = {}
        self._slow: set[Group] = set()
        self._verdicts = _held.setdefault(model, {})
        self._check = check

    @property
    def fallen_back(self) -> list[str]:
        """Groups for which the trace did not hold."""
        return [group.name for group in self._slow]

    def load(self, inputs: object) -> object:
        """Take a batch; its outputs with all channels."""
        self._masked.take(inputs)
        values = self._runner.inputs(inputs)
        output: object = None
        for node in self._runner.steps.nodes:
            if node.op != "placeholder":
                values[node] = output = self._runner.value(node, values)
        self._values, self._images = values, batch_size(inputs, None, output)
        return output

    def bytes_kept(self) -> int:
        """Memory of the values of the batch at hand."""
        tensors = pytree.tree_leaves(list(self._values.values()))
        sizes = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in tensors
            if isinstance(t, Tensor)
        }
        return sum(sizes.values())

    def images_in_cache(self, images: int) -> int | None:
        """Images that are read at once at full speed, or None where all are.

        So few that the largest value fits the cache, yet so many that the smallest maps still fill
        a matrix product.

        Args:
            images: Images of the batch at hand.
        """
        if self._device not in CACHE_BYTES:
            return None
        values = [v for v in self._values.values() if isinstance(v, Tensor)]
        largest = max(v.numel() * v.element_size() for v in values) / images
        positions = [
            value[0, 0].numel()
            for node, value in self._values.items()
            if node.op == "call_module" and isinstance(self._runner.layer(node), CONVOLUTION)
            if isinstance(value, Tensor)
        ]
        enough = COLUMNS // min(positions, default=COLUMNS)
        return max(1, int(CACHE_BYTES[self._device] / largest), enough)

    def outputs(self, group: Group, removals: Sequence[Removal]) -> list[object]:
        """The batch's outputs after each of some removals from one group."""
        if group.takes_statistics:
            self._slow.add(group)  # What is kept changes, too: there is little to keep.
        if group not in self._plans and group not in self._slow:
            self._plans[group] = Recomputation(self._runner, group)
            if self._check or group.name not in self._verdicts:
                agrees = self._agrees(group, removals[: self.together])
                self._verdicts[group.name] = agrees
            if not self._verdicts[group.name]:
                self._slow.add(group)
        if group in self._slow:
            return self._masked.outputs(group, removals)
        found: list[object] = []
        for start in range(0, len(removals), self.together):
            found += self._some(group, removals[start : start + self.together])
        return found

    def _some(self, group: Group, removals: Sequence[Removal]) -> list[object]:
        output = self._plans[group].run(self._values, removals, self._images)
        size = self._images
        images = size * len(removals)
        return [rows(output, k * size, (k + 1) * size, images) for k in range(len(removals))]

    def _agrees(self, group: Group, removals: Sequence[Removal]) -> bool:
        """Whether the last of some candidates, run together, is what the masked network gives."""
        try:
            *_, mine = self._some(group, removals)
        except Exception:  # Whatever a wrong trace leads to, the masked network is right.
            return False
        (right,) = self._masked.outputs(group, removals[-1:])
        return same_outputs(mine, right)


def same_outputs(one: object, other: object) -> bool:
    """Whether two outputs of a network are the same, to `TOLERANCE` of the largest value."""
    left, right = exact(one), exact(other)
    return len(left) == len(right) and all(
        a.shape == b.shape and largest([a - b]) <= TOLERANCE * largest([b])
        for a, b in zip(left, right, strict=True)
    )
