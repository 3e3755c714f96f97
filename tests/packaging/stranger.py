"""A stranger's file: it uses every public name, and type checkers must be content with it.

It is checked by mypy and pyright against the installed wheel, and the first part of it runs.
"""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

import selector


class Printing:
    """A callback of one's own."""

    def on_round_end(self, end: selector.RoundEnd) -> None:
        print(end.number, end.macs_kept, end.numbers.get("loss"))


def finetune(model: nn.Module, round: int) -> None:
    """Training of one's own."""
    model.train(round > 0)


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss of one's own."""
    return nn.functional.cross_entropy(outputs, targets)


def pruned(model: nn.Module, batches: list[tuple[object, object]], folder: Path) -> nn.Module:
    """Prune, look at what came of it, save, load."""
    callbacks: list[selector.Callback] = [Printing(), selector.CsvLog(folder / "rounds.csv")]
    result: selector.PruneResult = selector.prune(
        model,
        batches,
        keep_macs=0.7,
        rounds=1,
        finetune=finetune,
        loss=loss,
        callbacks=callbacks,
    )
    report, plan = result.report, result.plan
    print(repr(report), report.macs[1] / report.macs[0], [row.group for row in report.rows])
    plan.save(folder / "plan.json")
    again: selector.Plan = selector.Plan.load(folder / "plan.json")
    small: nn.Module = selector.apply_plan(model, again)
    selector.save_pruned(small, folder / "small.safetensors")
    small = selector.load_pruned(lambda: copy.deepcopy(model), folder / "small.safetensors")
    repaired = selector.reconstruct(model, result, batches)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    selector.rebind(optimizer, result)
    exported = selector.export(repaired.model, folder / "small.pt2", torch.zeros(2, 1, 8, 8))
    print(exported.bytes, exported.difference)
    return repaired.model


def measured(model: nn.Module, batches: list[tuple[object, object]]) -> float:
    """Scores, plans, true loss changes."""
    scores = selector.score(model, batches, metrics=["fisher", "l1"])
    plan = selector.choose(model, batches, ratio=0.3)
    group = plan.choices[0].group
    print(plan.explain(group), scores[group]["l1"].shape, selector.METRICS["l1"].summary)
    changes: list[selector.LossChange] = list(
        selector.loss_changes(model, batches, group, [[0], [1]])
    )
    found = selector.sensitivity(model, batches, ratios=[0.5], criterion="l1")
    compared = selector.compare_methods(model, batches, methods=["l1"], rounds=1, keep_macs=0.8)
    groups = selector.find_groups(model, torch.zeros(2, 1, 8, 8))
    print(found.groups, compared.rows[-1].loss, list(groups.prunable))
    return changes[0].nats + selector.evaluate(model, batches).loss


def rarely(model: nn.Module, batches: list[tuple[object, object]], folder: Path) -> None:
    """What takes longer, or is needed less often; never called here."""
    records: selector.Records = selector.record(model, batches, network="mine")
    learnt = selector.SaliencySelector().fit(records)
    learnt.save(folder / "selector")
    print(selector.compare(records, given=learnt), selector.explain)
    images = selector.read_images(folder, limit=8, size=32)
    print(images.images.shape, images.classes, selector.Oracle(), selector.Myopic())
    print(selector.compose_myopically, selector.kept_after_history, selector.TensorBoardLog)
    selector.distil(model, model, batches, minutes=1)
    importance = selector.SelectorImportance(model, batches)
    metric: selector.Metric = selector.METRICS["l1"]
    proposal: selector.Proposal = selector.PROPOSALS["l1"]
    print(importance, metric.name, proposal.name, selector.register_metric)
    print(selector.register_proposal, selector.register_statistic)
    try:
        selector.check_metric("l1")
    except selector.PruningError as error:
        print(error.result.report)
    except selector.SelectorError as error:
        print(error)


if __name__ == "__main__":
    import sys

    from selector.demo import calibration, network

    data = list(calibration())
    pruned(network(), data, Path(sys.argv[1]))
    print(measured(network(), data))
