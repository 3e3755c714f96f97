"""The columns of the records, with their units: what the data card says of each."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from selector.records.layout import CANDIDATES_FILE, GROUPS_FILE


@dataclass(frozen=True)
class Column:
    """A column, or several whose names differ in one word.

    Attributes:
        name: Its name; METRIC stands for the name of a metric, MODE for `plain` or `compensated`.
        unit: Unit of its values, or what kind of value they are.
        what: What it says.
    """

    name: str
    unit: str
    what: str

    def covers(self, name: str) -> bool:
        """Whether this describes the column of that name."""
        pattern = re.escape(self.name).replace("METRIC", r"\w.*")
        return re.fullmatch(pattern.replace("MODE", "(plain|compensated)"), name) is not None


_NAMES = (
    Column("network", "name", "the network; also the name of the folder"),
    Column("context", "name", "its state: `unpruned`, or `METRIC-SHARE`, see above"),
    Column("group", "name", "the group of channels, called after its first layer"),
)

_FACTS = (
    Column(
        "fact_relative_depth", "share", "place of the root among the layers with weights, 0 to 1"
    ),
    Column("fact_log_channels", "log2 of channels", "removable channels of the group"),
    Column("fact_relative_width", "share", "the root's outputs over those of the widest layer"),
    Column("fact_log_fan_in", "log2 of weights", "weights of the root that go with one channel"),
    Column("fact_kernel", "pixels", "the root's kernel size; 1 for a linear layer"),
    Column("fact_log_positions", "log2 of pixels", "size of a channel's maps, over all consumers"),
    Column("fact_producers", "layers", "layers that lose output channels"),
    Column("fact_consumers", "layers", "layers that lose input channels"),
    Column("fact_depthwise", "0 or 1", "whether a depthwise convolution stands between"),
    Column("fact_normalised", "0 or 1", "whether a BatchNorm stands between"),
    Column("fact_linear_producer", "0 or 1", "whether the root is a linear layer"),
    Column("fact_linear_consumer", "0 or 1", "whether a consumer is a linear layer"),
    Column("fact_macs_share", "share", "of the network's multiply-accumulates that goes with all"),
    Column("fact_parameters_share", "share", "of the network's parameters that goes with all"),
    Column("fact_norm_spread", "ratio", "standard deviation of the filters' norms over their mean"),
    Column("fact_norm_skew", "none", "skewness of the filters' norms"),
    Column(
        "fact_norm_kurtosis", "none", "kurtosis (fourth standardised moment) of the filters' norms"
    ),
    Column("fact_stable_rank", "share", "stable rank of the weights over the smaller dimension"),
    Column("fact_mean_cosine", "-1 to 1", "mean cosine between two different filters"),
)

_STATES = (
    Column("state_macs_kept", "share", "of the unpruned network's multiply-accumulates, left"),
    Column("state_base_loss", "nats", "mean loss before the removal, on the signals' images"),
    Column("state_relative_loss", "ratio", "the same over that of guessing, log of the classes"),
    Column("state_log_outputs", "log2 of classes", "number of classes"),
    Column("state_log_images", "log2 of images", "images behind the signals"),
)

_SCORES = (
    Column(
        "score_METRIC",
        "the metric's",
        "raw scores, one for each channel, the lowest goes first; missing where the metric does "
        "not apply (`saliency-selector metrics` lists formulas and sources)",
    ),
    Column(
        "pairs_MODE_first",
        "nats",
        "mean over images of a channel's first-order effect, one for each channel; from schema 3",
    ),
    Column(
        "pairs_MODE_scale",
        "nats",
        "root mean square over images of the same, one for each channel; from schema 3",
    ),
    Column(
        "pairs_MODE_correlation",
        "-1 to 1",
        "mean product of two channels' effects over both scales: the pairs above the diagonal, row "
        "by row; from schema 3",
    ),
)

_CANDIDATES = (
    Column("count", "channels", "how many are removed"),
    Column("arm", "name", "the metric whose lowest channels go"),
    Column("set_id", "number", "equal for arms that chose the same channels: measured once"),
    Column("selection_nats", "nats", "change of the mean loss on the selection split"),
    Column("selection_error", "nats", "its standard error, paired image by image"),
    Column("evaluation_nats", "nats", "change of the mean loss on the evaluation split"),
    Column("evaluation_error", "nats", "its standard error"),
    *(
        Column(f"compensated_{split}_{kind}", "nats", what)
        for split in ("selection", "evaluation")
        for kind, what in (
            ("nats", f"on the {split} split, the removed channels' means put in their place"),
            ("error", "its standard error"),
        )
    ),
    Column(
        "recalibrated_nats",
        "nats",
        "on the evaluation split, after plain removal and BatchNorm recalibrated on the signals' "
        "images; a sample of the decisions, missing in the others",
    ),
    Column("recalibrated_error", "nats", "its standard error"),
    *(
        Column(f"{split}_divergence{kind}", "nats x 4", what)
        for split in ("selection", "evaluation")
        for kind, what in (
            (
                "",
                f"on the {split} split, rise of the divergence from the unpruned network's "
                "softened outputs; repaired removal only, from schema 4",
            ),
            ("_error", "its standard error"),
        )
    ),
    Column(
        "channels",
        "numbers",
        "what goes, where the arm proposes sets; repaired removal only, from schema 4",
    ),
    Column(
        "residual",
        "share",
        "of the consumers' variance, what is lost once the rest is refitted, summed over "
        "consumers; this and the next two in repaired removal only, from schema 4",
    ),
    Column("fisher_residual", "nats", "the same by the softened outputs' gradients (K-FAC)"),
    Column(
        "softened_second",
        "nats",
        "joint effect on the softened outputs without a refit, to second order",
    ),
)

COLUMNS: Mapping[str, Sequence[Column]] = {
    GROUPS_FILE: (
        *_NAMES,
        Column("channels", "channels", "channels that the group has in this state"),
        *_FACTS,
        *_STATES,
        *_SCORES,
    ),
    CANDIDATES_FILE: (*_NAMES, *_CANDIDATES),
}
"""File -> its columns."""


def described(file: str, name: str) -> Column | None:
    """What is said of a column, if anything is."""
    return next((column for column in COLUMNS[file] if column.covers(name)), None)
