"""The ablation's learners: all of them learn what can be learnt, and see what they should."""

import numpy as np
import pytest

from selector.learning.boosters import Settings
from selector.learning.features import feature_names
from tests.made_records import lawful
from training.evaluation.ablation import VARIANTS, Variant, judged_variant, nameless
from training.evaluation.protocol import table_of
from training.evaluation.splits import folds_of

RECORDS = (
    lawful([f"a{n}" for n in range(4)], 0, 6, "a")
    + lawful([f"b{n}" for n in range(4)], 1, 6, "b")
    + lawful([f"c{n}" for n in range(4)], 2, 6, "c")
)
LEARNERS = [v for v in VARIANTS if v.name.startswith("all")]


@pytest.mark.parametrize("variant", LEARNERS, ids=lambda variant: variant.name)
def test_every_objective_learns_who_is_right_where(variant: Variant) -> None:
    found = judged_variant(variant, table_of(RECORDS), folds_of(RECORDS.networks, "family"))
    assert found["gap_closed_capped"] > 0.25


def test_without_names_the_arms_number_is_not_seen() -> None:
    table = table_of(RECORDS)
    x, how = table.seen.features, Settings(20, 7, 0.1, 0)
    renamed = x.copy()
    renamed[:, -1] = 7
    one, other = nameless(table, x, x, how), nameless(table, renamed, renamed, how)
    assert np.array_equal(one, other)


def test_variants_see_what_their_names_say() -> None:
    names = [*feature_names(["l1", "fisher"]), "arm"]
    seen = {v.name: [name for name in names if v.columns(name)] for v in VARIANTS}
    assert seen["all, regression"] == names
    assert not any("plain_" in name for name in seen["without pairs of channels"])
    assert "share_l1" not in seen["without metrics' opinions"]
    assert "log_channels" in seen["without metrics' opinions"]
    assert all("arm" in columns for columns in seen.values())
    assert np.all([len(columns) > 1 for columns in seen.values()])
