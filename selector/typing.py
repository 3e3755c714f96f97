"""Types that several rooms use."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

Numbers = npt.NDArray[np.intp]
Names = npt.NDArray[np.str_]

Channels = tuple[int, ...]

Mode = Literal["plain", "compensated", "repaired"]

Side = str
"""A side of a layer, `out`, `in` or `both`; other places have names (`selector.network.bare`)."""
ChannelSet = Sequence[int]

Interval = tuple[float, float]
