"""`sensitivity`: what taking channels from one group alone does to the loss, at several ratios."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from tqdm import tqdm

from selector.data.batches import Batches
from selector.data.calibration import Calibration
from selector.data.checks import check_model, check_names, share
from selector.data.exclusive import one_at_a_time
from selector.data.fingerprint import fingerprint_of
from selector.data.kept_rows import KeptRows
from selector.data.loss import Loss, evaluate
from selector.data.own_forward import Forward
from selector.errors import SelectorError
from selector.files import write_whole
from selector.learning.selector import SaliencySelector
from selector.network.copying import uncompiled
from selector.network.groups import Group
from selector.oracle.oracle import Oracle
from selector.planning.candidates import Survey, survey_network
from selector.planning.choose import first_stage
from selector.planning.limits import Limits
from selector.planning.method import method_of
from selector.planning.target import Target
from selector.tables import data_frame, html_table, nats_text, text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

RATIOS = (0.1, 0.25, 0.5, 0.75)
SCALE_NATS = 0.01
"""Loss changes below this are alike in the heat map."""


@dataclass(frozen=True)
class SensitivityRow:
    """One group without a share of its channels."""

    group: str
    channels: int
    ratio: float
    """Share that was asked for."""
    removed: int
    """Channels that went, the nearest whole number of them, at least one."""
    metric: str
    """Which chose them."""
    loss_change_nats: float
    """Mean loss without them minus the unpruned network's, all other groups whole."""
    standard_error: float
    predicted_nats: float | None
    """What the selector predicts; None where a metric was named."""


@dataclass(frozen=True, repr=False)
class Sensitivity:
    """Loss changes by group and ratio; prints as a table, saves as Parquet, plots as a heat map."""

    rows: tuple[SensitivityRow, ...]
    criterion: str
    images: int
    base_loss: float
    """Of the unpruned network."""
    accuracy: float | None

    def __repr__(self) -> str:
        """How much was measured."""
        return f"Sensitivity({len(self.groups)} groups, {len(self.ratios)} ratios)"

    @property
    def groups(self) -> list[str]:
        """Names of the groups, in the network's order."""
        return list(dict.fromkeys(row.group for row in self.rows))

    @property
    def ratios(self) -> list[float]:
        """Shares that were tried, ascending."""
        return sorted({row.ratio for row in self.rows})

    def __str__(self) -> str:
        """Loss changes: a line for each group, a column for each ratio."""
        accuracy = "" if self.accuracy is None else f", accuracy {self.accuracy:.1%}"
        return "\n".join(
            [
                text_table(self._columns(), self._cells()),
                f"nats by which the loss rises when a share of one group's channels is gone, by "
                f"{self.criterion};\n  unpruned: loss {self.base_loss:.4f}{accuracy}, on "
                f"{self.images} images",
            ]
        )

    def _repr_html_(self) -> str:
        """The table, for notebooks."""
        return html_table(self._columns(), self._cells(), title=repr(self))

    def _columns(self) -> list[str]:
        return ["group", "channels", *(f"{ratio:.0%}" for ratio in self.ratios)]

    def _cells(self) -> list[list[str]]:
        found = {(row.group, row.ratio): row for row in self.rows}
        channels = {row.group: row.channels for row in self.rows}
        return [
            [
                name,
                f"{channels[name]}",
                *(nats_text(found[name, ratio].loss_change_nats) for ratio in self.ratios),
            ]
            for name in self.groups
        ]

    def to_pandas(self) -> "DataFrame":
        """The rows as a pandas table."""
        return data_frame([asdict(row) for row in self.rows])

    def save(self, path: str | Path) -> None:
        """Write the rows as Parquet.

        Raises:
            SelectorError: The file cannot be written.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pylist([asdict(row) for row in self.rows])
        write_whole(path, lambda partial: pq.write_table(table, partial))

    def plot(self) -> "Figure":
        """A heat map: groups over ratios; colours on a scale that is linear only near zero."""
        from matplotlib.colors import SymLogNorm
        from matplotlib.figure import Figure

        found = {(row.group, row.ratio): row.loss_change_nats for row in self.rows}
        values = [[found[name, ratio] for ratio in self.ratios] for name in self.groups]
        figure = Figure(figsize=(6, 1.5 + 0.25 * len(values)), layout="constrained")
        axes = figure.add_subplot()
        largest = max(SCALE_NATS, *(abs(value) for row in values for value in row))
        norm = SymLogNorm(SCALE_NATS, vmin=-largest, vmax=largest)
        image = axes.imshow(values, aspect="auto", cmap="RdBu_r", norm=norm)
        axes.set_xticks(range(len(self.ratios)), [f"{ratio:.0%}" for ratio in self.ratios])
        axes.set_yticks(range(len(values)), self.groups)
        axes.set_xlabel("channels of the group removed")
        figure.colorbar(image, label="loss change, nats")
        return figure


@one_at_a_time
def sensitivity(
    model: nn.Module,
    batches: Batches,
    *,
    ratios: Sequence[float] = RATIOS,
    criterion: str = "selector",
    selector: SaliencySelector | None = None,
    loss: Loss | None = None,
    forward: Forward | None = None,
    ignore: Iterable[str] = (),
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> Sensitivity:
    """Measure what taking channels from one group alone does to the loss, at several ratios.

    Reads the data once to score, and once for each group, with a forward pass of the network's part
    behind the group for each ratio. Nothing is repaired and BatchNorm keeps its statistics.

    Args:
        model: A trained network; it stays as it is.
        batches: Re-iterable of (inputs, targets), the same images on every reading.
        ratios: Shares of a group's channels, each in (0, 1).
        criterion: What chooses the channels: `selector`, the name of a metric or of a proposal.
        selector: Asked by criterion `selector` alone; the shipped one by default.
        loss: Mean loss of a batch; cross-entropy by default.
        forward: Runs the network on a batch, as for `prune`.
        ignore: Groups that are left out, by name.
        checkpoint: Folder for what is measured so far: the same call goes on from it.
        progress: Show a progress bar.

    Raises:
        SelectorError: Unusable input, or images without labels.
    """
    check_model(model)
    model = uncompiled(model)
    asked = sorted({share("ratios", ratio) for ratio in ratios})
    if not asked:
        raise SelectorError("ratios are empty; pass shares such as [0.25, 0.5]")
    if criterion == "oracle":
        raise SelectorError("criterion='oracle' measures candidates itself; name a metric here")
    calibration = Calibration(batches, loss)
    if calibration.unlabelled:
        raise SelectorError("sensitivity measures losses, and the batches hold no labels")
    method = method_of(criterion, Target("macs", 0.5), selector=selector, allocation="even")
    stage = first_stage(
        model, calibration, Target("macs", 0.5), Limits(ignore=check_names("ignore", ignore))
    )
    survey = survey_network(model, calibration, stage, method.criterion)
    options = (criterion, asked, sorted(stage.groups.prunable))
    kept = KeptRows(checkpoint, fingerprint_of(model, [calibration], *options))
    rows: list[SensitivityRow] = []
    groups = stage.groups.required().values()
    for group in tqdm(groups, "groups", disable=not progress, leave=False):
        found = kept.load(group.name)
        if found is None:
            some = _measured(model, calibration, group, asked, method.criterion.options, survey)
            found = [asdict(row) for row in some]
            kept.save(group.name, found)
        rows += [SensitivityRow(**row) for row in found]
    whole = evaluate(model, calibration, loss)
    return Sensitivity(tuple(rows), str(method.criterion), whole.images, whole.loss, whole.accuracy)


def _measured(
    model: nn.Module,
    calibration: Calibration,
    group: Group,
    ratios: Sequence[float],
    options: Any,
    survey: Survey,
) -> list[SensitivityRow]:
    """One group at all ratios."""
    counts = {r: min(group.channels - 1, max(1, round(r * group.channels))) for r in ratios}
    choices = {r: options(survey, {group: n})[group][0] for r, n in counts.items()}
    sets: Mapping[Group, list[tuple[int, ...]]] = {group: [c.remove for c in choices.values()]}
    changes = Oracle().measure(model, calibration, sets, loss=calibration.loss).changes[group]
    return [
        SensitivityRow(
            group=group.name,
            channels=group.channels,
            ratio=ratio,
            removed=len(choice.remove),
            metric=choice.metric,
            loss_change_nats=change.nats,
            standard_error=change.standard_error,
            predicted_nats=choice.predicted_nats,
        )
        for (ratio, choice), change in zip(choices.items(), changes, strict=True)
    ]
