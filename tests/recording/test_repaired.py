"""Records of repaired removal: what is measured, what is kept, and what does not mix."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import selector
from selector.data.calibration import Calibration
from selector.errors import SelectorError
from selector.learning.features import candidates, describe, feature_names
from selector.learning.table import names_of
from selector.network.folding import Prediction
from selector.network.tracing import find_groups
from selector.oracle.oracle import Oracle
from selector.recording import record
from selector.recording.contexts import PrunedContext, draw_contexts
from selector.records.decision import SET_ERRORS, Decision
from selector.records.records import Records
from selector.saliency.proposals.knowledge import measure_sets, set_proposals
from selector.saliency.proposals.registry import PROPOSALS
from selector.saliency.proposals.set_errors import ERRORS
from tests.networks import data, small

SETS = {one.name for one in PROPOSALS.values() if one.kind == "set"}


@pytest.fixture(scope="module")
def recorded() -> Records:
    model, batches = small("residual", 6, norm=True).float(), data(96, 16, dtype=torch.float32)
    return selector.record(
        model,
        batches,
        network="made",
        contexts=[PrunedContext("reconstruction", 0.8), PrunedContext("selector", 0.7)],
        ratios=[0.34],
        mode="repaired",
        unseen=True,
    )


def test_losses_and_divergences_are_the_oracles(recorded: Records) -> None:
    """The slow twin: the oracle by hand on the evaluation split of the unpruned state."""
    model, batches = small("residual", 6, norm=True).float(), data(96, 16, dtype=torch.float32)
    groups = find_groups(model, batches[0][0]).prunable
    signals, evaluation = batches[0::3], batches[2::3]
    prediction = Prediction.measured(model, signals, groups.values())
    oracle = Oracle("repaired", prediction=prediction, batch_statistics=True)
    rows = [r for r in recorded.candidates if r.context == "unpruned" and r.channels is not None]
    for row in rows[:: len(rows) // 6]:
        group = groups[row.group]
        found = oracle.measure(model, evaluation, {group: [row.channels]}, reference=model)
        assert row.evaluation_nats == pytest.approx(found.changes[group][0].nats, abs=1e-5)
        divergence = found.divergences[group][0].nats
        assert row.evaluation_divergence == pytest.approx(divergence, rel=1e-3, abs=1e-5)


def test_sets_are_candidates_in_every_state(recorded: Records) -> None:
    contexts = {row.context for row in recorded.candidates}
    assert contexts == {"unpruned", "reconstruction-0.80", "selector-0.70"}
    for group, decision, rows in recorded.decisions():
        assert {row.arm for row in rows} >= SETS
        for row in rows:
            if row.arm in SETS:
                assert row.channels is not None
                assert len(row.channels) == decision.count
                assert max(row.channels) < group.channels
            else:
                assert row.channels is None
            assert row.selection_divergence is not None
            assert row.compensated_selection_nats is None
        # Equal sets are measured once.
        for one in rows:
            for other in rows:
                if one.set_id == other.set_id:
                    assert one.evaluation_nats == other.evaluation_nats


def test_they_are_written_and_read(recorded: Records, tmp_path: Path) -> None:
    recorded.save(tmp_path)
    again = Records.load(tmp_path)
    assert again.candidates == recorded.candidates
    assert again.networks == recorded.networks
    assert again.networks[0].mode == "repaired"
    assert again.networks[0].unseen is True


def test_modes_do_not_mix(recorded: Records, tmp_path: Path) -> None:
    (about,) = recorded.networks
    plain = Records((replace(about, network="other", mode="plain"),), (), ())
    with pytest.raises(SelectorError, match="'made' and 'other' were recorded in different modes"):
        recorded + plain
    recorded.save(tmp_path)
    other = replace(
        recorded,
        networks=plain.networks,
        groups=tuple(replace(row, network="other") for row in recorded.groups),
        candidates=tuple(replace(row, network="other") for row in recorded.candidates),
    )
    other.save(tmp_path)
    with pytest.raises(SelectorError, match="different modes, repaired and plain"):
        Records.load(tmp_path)


def test_errors_are_named_alike_where_they_are_measured_and_kept(recorded: Records) -> None:
    assert ERRORS == SET_ERRORS
    for row in recorded.candidates:
        assert row.residual is not None
        assert row.residual >= 0


def test_a_set_that_is_none_of_the_group_is_refused(recorded: Records, tmp_path: Path) -> None:
    place = next(i for i, row in enumerate(recorded.candidates) if row.channels is not None)
    rows = list(recorded.candidates)
    for wrong in ((0, 0), (99,), ()):
        rows[place] = replace(rows[place], channels=wrong)
        with pytest.raises(SelectorError, match=f"names {len(wrong)} channels, which must be"):
            replace(recorded, candidates=tuple(rows)).save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_selector_learns_from_them(recorded: Records) -> None:
    other = replace(
        recorded,
        networks=(replace(recorded.networks[0], network="other"),),
        groups=tuple(replace(row, network="other") for row in recorded.groups),
        candidates=tuple(replace(row, network="other") for row in recorded.candidates),
    )
    learnt = selector.SaliencySelector(folds=2, trees=5).fit(recorded + other)
    assert set(learnt.set_arms) == SETS
    assert "rank_mean" in learnt.arms_
    model, batches = small("residual", 6, norm=True).float(), data(96, 16, dtype=torch.float32)
    result = selector.prune(model, batches, selector=learnt, keep_macs=0.6, rounds=1)
    trusted = {choice.metric for plan in result.rounds for choice in plan.choices}
    assert trusted <= set(learnt.arms_)


def test_what_is_known_of_sets_is_the_same_when_recorded_and_when_measured(
    recorded: Records,
) -> None:
    """A selector must see at prune time the very features that it has learnt from."""
    model, batches = small("residual", 6, norm=True).float(), data(96, 16, dtype=torch.float32)
    calibration = Calibration(batches[0::3])
    groups = find_groups(model, batches[0][0]).prunable
    live = measure_sets(model, calibration, groups, set_proposals())
    metrics = names_of(recorded)[1]
    arms = [*SETS, "l1", "fisher"]
    place = feature_names(metrics).index
    columns = [place(f"{error}_{name}") for error in SET_ERRORS for name in ("log", "excess")]
    for group, decision, _ in recorded.decisions():
        if group.context != "unpruned":
            continue
        now = Decision(replace(decision.view, sets=live[group.group]), decision.count)
        found = candidates(now, arms)
        assert found == candidates(decision, arms)
        then = describe(decision, found, metrics)[:, columns]
        assert np.isfinite(then).all()
        assert describe(now, found, metrics)[:, columns] == pytest.approx(then, rel=1e-6, abs=1e-9)


def test_states_are_drawn_from_all_that_may_choose() -> None:
    drawn = draw_contexts(
        6, torch.Generator().manual_seed(0), criteria=["l1", "reconstruction", "selector"]
    )
    assert {context.metric for context in drawn} == {"l1", "reconstruction", "selector"}


def test_an_unknown_mode_is_named() -> None:
    with pytest.raises(SelectorError, match="unknown mode 'mended'; known: plain, repaired"):
        selector.record(small("plain"), data(), network="made", mode="mended")  # type: ignore[arg-type]


def test_states_are_drawn_from_what_every_group_can_be_pruned_by() -> None:
    """A metric of BatchNorm prunes no network in which some group has none."""
    for last, applies in ((nn.BatchNorm2d(6), True), (nn.Identity(), False)):
        layers = [nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 6, 3), last]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
        groups = find_groups(model.double().eval(), data()[0][0]).prunable.values()
        assert len(groups) == 2
        names = record._criteria("repaired", model, groups)
        assert ("batchnorm_scale" in names) is applies
        assert {"l1", "reconstruction", "selector"} <= set(names)
