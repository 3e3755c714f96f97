"""The benchmark of whole networks: the same for all methods, resumable, and honest sums."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from selector.errors import SelectorError
from selector.learning.selector import SaliencySelector
from selector.network.costs import count_costs
from selector.network.tracing import find_groups
from tests.networks import CLASSES, data, small
from tests.training.digits_network import DIGITS, SUBJECT
from training.benchmarks.common import subjects
from training.benchmarks.common.curves import CurvePoint, area
from training.benchmarks.common.differences import differences_in_words
from training.benchmarks.common.subjects import OfZoo, held_out_specs
from training.benchmarks.networks import runs as networks
from training.benchmarks.networks import third_party
from training.benchmarks.networks.learnt import learn_without
from training.benchmarks.networks.methods import (
    DRAWS,
    METHODS,
    MYOPIC,
    PORTFOLIO,
    RIVALS,
    SELECTOR,
    SINGLES,
    VERIFY3,
    always,
)
from training.benchmarks.networks.pruning_task import (
    Folders,
    PruningTask,
    RunSettings,
    tasks_for,
)
from training.benchmarks.networks.report import update_pages
from training.benchmarks.networks.runs import CurveRun, run_missing
from training.benchmarks.networks.tables import BEST_RIVAL, BEST_SINGLE, SBS, rows_of, summary_of
from training.benchmarks.networks.torch_pruning_rival import (
    IMPORTANCES,
    Ranking,
    prune_with_torch_pruning,
)
from training.benchmarks.speed import resnet50 as resnet50_cost
from training.evaluation.card import update_card
from training.evaluation.report import update_page
from training.reporting.accuracy import correct, quick
from training.reporting.result_file import RESULTS
from training.zoo.families import FAMILIES
from training.zoo.sampling import sample_zoo
from training.zoo.skeletons import NetworkShape
from training.zoo.specs import NetworkSpec

ROOT = Path(__file__).resolve().parents[2]
KNOWN = "chengyuhsieh_lenet_mnist", "stanweer1_oneconv_fashion"
"""Recorded networks of other families."""
FEW = RunSettings(rounds=4, calibration_images=128, test_images=200)

START, END = "<!-- networks: begin -->", "<!-- networks: end -->"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Records of four small networks, one of them of the family that is judged."""
    root = tmp_path_factory.mktemp("networks")
    for name in (*KNOWN, "digits-nin-w48d1-relu-5baf54", "digits-residual-w24d3-leaky_relu-df4072"):
        shutil.copytree(ROOT / "data" / name, root / "data" / name)
    return Folders(root / "data", root / "zoo", root / "learnt")


@pytest.mark.parametrize("style", ["plain", "residual", "depthwise", "transposed"])
def test_quick_reading_sees_the_same_images_right(style: str) -> None:
    model, images = small(style, 6, norm=True), data(60, 20)
    plain = torch.cat([model(x).argmax(1) == y for x, y in images])
    assert torch.equal(correct(quick(model), images), plain)
    assert 0 < int(plain.sum()) < len(plain)


def test_networks_that_cannot_be_traced_are_read_as_they_are() -> None:
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = small("plain", 4, norm=True)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.body(images) if images.mean() > -100 else -self.body(images)

    model, images = Moody().eval(), data(12, 12)
    inputs, labels = images[0]
    assert torch.equal(correct(quick(model), images), model(inputs).argmax(1) == labels)


@pytest.mark.parametrize("ranking", ["local", "global"])
@pytest.mark.parametrize("importance", IMPORTANCES)
def test_torch_pruning_meets_every_limit_and_keeps_the_outputs(
    importance: str, ranking: Ranking
) -> None:
    model = small("residual", 24, norm=True).float()
    images = data(8, 4, dtype=torch.float32)
    before = copy.deepcopy(model.state_dict())
    whole = count_costs(model, images[0][0]).total("macs")
    kept: list[float] = []

    def look(network: nn.Module, number: int) -> None:
        kept.append(count_costs(network, images[0][0]).total("macs") / whole)
        assert number == len(kept)

    pruned = prune_with_torch_pruning(
        model, images, importance, ranking, keep_macs=0.4, rounds=3, finetune=look
    )
    assert [share <= 0.4 ** (n / 3) for n, share in enumerate(kept, 1)] == [True] * 3
    # No further than a few channels: the limit is approached in small steps.
    assert kept[-1] > 0.3
    assert kept[-1] == count_costs(pruned.model, images[0][0]).total("macs") / whole
    assert pruned.model(images[0][0]).shape == (4, CLASSES)
    assert len(pruned.histories) == 3
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_channels_that_cannot_be_cut_are_kept_from_torch_pruning() -> None:
    """An option-A shortcut: by itself it cuts it, and the network does not run any more."""
    shape = NetworkShape(3, CLASSES, 8, 8, 1, "relu")
    model, images = FAMILIES["option_a"](shape).eval(), data(8, 4, dtype=torch.float32)
    # Our own mapping follows the padded trunk, which its graph does not.
    groups = find_groups(model, images[0][0])
    refused = [*groups.refused, *groups.prunable["stem.conv"].producers]
    assert len(refused) > 2
    small = prune_with_torch_pruning(model, images, "l2", "global", keep_macs=0.7, rounds=2).model
    assert small(images[0][0]).shape == (4, CLASSES)
    for name in refused:
        before, after = model.get_submodule(name), small.get_submodule(name)
        assert before.weight.shape[0] == after.weight.shape[0]


def test_what_torch_pruning_cannot_do_is_said() -> None:
    with pytest.raises(SelectorError, match="torch-pruning l1 local: it stops at"):
        prune_with_torch_pruning(
            small("plain", 6).float(),
            data(8, 4, dtype=torch.float32),
            "l1",
            "local",
            keep_macs=0.01,
            rounds=2,
        )
    with pytest.raises(
        SelectorError, match="unknown importance 'size' of Torch-Pruning; known: l1"
    ):
        prune_with_torch_pruning(small("plain"), data(), "size", "local", keep_macs=0.5, rounds=1)


def task(method: str, folders: Folders) -> PruningTask:
    return tasks_for([SUBJECT], [method], FEW, folders)[0]


@pytest.mark.parametrize(
    "method", [always("l1"), SELECTOR, VERIFY3, PORTFOLIO, MYOPIC, "torch-pruning taylor global"]
)
def test_one_pruning_gives_the_whole_curve(method: str, folders: Folders) -> None:
    run = networks.run_one(task(method, folders))
    assert run.failed is None
    assert run.points[0].macs_kept == 1.0
    assert run.points[0].accuracy > 0.5
    macs = [point.macs_kept for point in run.points]
    # A round whose whole plan hurts more than was foreseen is taken in halves.
    halves = method in (VERIFY3, PORTFOLIO)
    assert len(macs) == FEW.rounds + 1 or (halves and len(macs) > FEW.rounds + 1)
    assert macs == sorted(macs, reverse=True)
    assert macs[-1] <= 0.3
    assert area(run.points) is not None
    # Repair changes weights, and no widths.
    assert [point.macs_kept for point in run.repaired] == macs
    assert area(run.repaired) > area(run.points)
    assert (run.oracle_forwards > 0) == (method in (VERIFY3, PORTFOLIO, MYOPIC))
    assert run.seconds > 0


def test_no_run_is_made_twice_until_something_changes(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, int]] = []

    def pretend(task: PruningTask) -> CurveRun:
        made.append((task.method, task.settings.draw))
        points = [CurvePoint(1.0, 0.0, 0.9)]
        return CurveRun(*task.key, points, points, 0, 1.0, 0.1, task.settings.draw)

    monkeypatch.setattr(networks, "run_one", pretend)
    file, names = tmp_path / "runs.jsonl", [always("l2"), always("l1"), SELECTOR]
    # Those of every draw come first.
    drawn = [(name, draw) for draw in range(DRAWS) for name in (SELECTOR, always("l1"))]
    every = [*drawn, (always("l2"), 0)]
    tasks = tasks_for([SUBJECT], names, FEW, folders)
    first = run_missing(tasks, file, 1, None)
    assert made == every
    assert len({run.key for run in first}) == len(every)
    assert run_missing(tasks, file, 1, None) == first == networks.finished(tasks, file)
    assert made == every
    more = tasks_for([SUBJECT], names, RunSettings(rounds=5), folders)
    assert networks.finished(more, file) == []
    run_missing(more, file, 1, None)
    assert made == every * 2
    # Another selector changes the runs that it advises, and no others.
    with (Path(tasks[0].learnt.selector) / "selector.json").open("a") as stream:
        stream.write("\n")
    run_missing(tasks, file, 1, None)
    assert made == [*every * 2, *((SELECTOR, draw) for draw in range(DRAWS))]


def test_unknown_networks_and_methods_are_named(folders: Folders) -> None:
    with pytest.raises(SelectorError, match="unknown method 'fish'; known: selector; always rec"):
        tasks_for([SUBJECT], ["fish"], FEW, folders)
    with pytest.raises(SelectorError, match="unknown network 'lenet'; known: founding_lenet-5"):
        subjects.find_subjects(folders.data, ["lenet"])


def test_a_method_that_fails_says_why_and_keeps_its_points(folders: Folders) -> None:
    plain = NetworkSpec(**{**vars(DIGITS), "family": "plain", "name": "digits-plain-test"})
    run = networks.run_one(
        tasks_for([OfZoo(plain.name, plain)], [always("batchnorm_scale")], FEW, folders)[0]
    )
    assert "needs normalisation" in str(run.failed)
    assert len(run.points) == 1
    row = rows_of([run], {plain.name: "l1"})[plain.name, always("batchnorm_scale")]
    assert row.area == 0.0
    assert row.values["auc"] is None


def test_what_is_learnt_knows_neither_the_family_nor_the_judged(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nin = next(spec for spec in sample_zoo(160, 2026) if spec.family == "nin")
    other = OfZoo("digits-nin-w48d1-relu-5baf54", nin)
    learnt = learn_without(SUBJECT, [SUBJECT, other], folders.data, tmp_path)
    for folder in (learnt.selector, learnt.portfolio):
        known = SaliencySelector.load(folder).networks_
        assert sorted(known) == sorted(KNOWN)
    assert len(SaliencySelector.load(learnt.portfolio).arms_) == 3
    assert learnt.single_best in SaliencySelector.load(learnt.selector).arms_
    monkeypatch.setattr(SaliencySelector, "fit", None)
    assert learn_without(SUBJECT, [SUBJECT, other], folders.data, tmp_path) == learnt


def test_held_out_networks_are_taken_by_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfit: set[str] = set()
    monkeypatch.setattr(subjects, "can_be_pruned", lambda spec, keep: spec.name not in unfit)
    sample = sample_zoo(160, 2026)
    for spec in sample[:40]:
        (tmp_path / spec.name).mkdir()
    chosen = held_out_specs(tmp_path)
    assert sorted(spec.dataset for spec in chosen) == sorted(subjects.HELD_OUT)
    assert len({spec.family for spec in chosen}) == 4
    assert chosen == [spec for spec in sample if spec in chosen]
    assert chosen[0] == next(spec for spec in sample if spec.dataset in subjects.HELD_OUT)
    (tmp_path / chosen[0].name).rmdir()
    unfit.add(chosen[1].name)
    again = held_out_specs(tmp_path)
    assert len(again) == 4
    assert chosen[0] not in again
    assert chosen[1] not in again


def test_a_network_is_fit_when_its_groups_allow_the_target() -> None:
    assert subjects.can_be_pruned(DIGITS, 0.3)
    assert not subjects.can_be_pruned(DIGITS, 0.001)


def run_of(network: str, method: str, accuracy: float, forwards: int = 0) -> CurveRun:
    points = [
        CurvePoint(1.0, 0.0, 0.9),
        CurvePoint(0.9, 0.1, accuracy),
        CurvePoint(0.3, 0.7, accuracy),
    ]
    better = [replace(point, accuracy=point.accuracy + 0.05) for point in points]
    return CurveRun(network, method, "", points, better, forwards, 1.0, 0.1)


def test_the_summary_counts_networks_and_takes_the_best_in_hindsight() -> None:
    runs = []
    for network, better in (("one", 0.8), ("two", 0.5)):
        runs += [run_of(network, name, 0.4) for name in SINGLES if name != always("fisher")]
        runs += [run_of(network, always("fisher"), 0.6), run_of(network, SELECTOR, better)]
        runs += [run_of(network, name, 0.45) for name in RIVALS if METHODS[name].default]
        runs += [run_of(network, VERIFY3, better, 30), run_of(network, MYOPIC, 0.7, 120)]
    table = rows_of(runs, {"one": "taylor", "two": "taylor"})
    assert table["one", SBS].note == always("taylor")
    assert table["two", BEST_SINGLE].note == always("fisher")
    assert table["two", BEST_RIVAL].area == pytest.approx(0.45)
    summary = summary_of(table)
    assert summary["networks"] == 2
    assert summary["selector_beats_sbs"] == 2
    assert summary["selector_beats_best_single"] == 1
    assert summary["verify3_beats_torch_pruning"] == 2
    assert summary["auc_selector"] == pytest.approx(0.65)
    assert summary["auc_best_single_hindsight"] == pytest.approx(0.6)
    assert summary["verify3_forwards_over_myopic"] == pytest.approx(0.25)
    assert "auc_fixed_portfolio3" not in summary
    # Repaired networks stand beside the others, five points above them here.
    assert summary["auc_selector_repaired"] == pytest.approx(0.7)
    assert summary["draws"] == 1
    # As long as one of them was not run, nobody knows which would have been best.
    fewer = [run for run in runs if run.method != always("l2")]
    assert "auc_best_single_hindsight" not in summary_of(
        rows_of(fewer, dict.fromkeys(["one", "two"], "l1"))
    )


def test_routing_is_judged_by_the_best_rival_at_the_same_widths() -> None:
    areas = {SELECTOR: 0.6, always("l1"): 0.5, always("reconstruction"): 0.5}
    areas |= {"l1, the selector's shares": 0.55, "reconstruction, the selector's shares": 0.57}
    runs = [
        run_of(network, method, accuracy + lead)
        for network, lead in (("a", 0.0), ("b", 0.1), ("c", 0.2))
        for method, accuracy in areas.items()
    ]
    summary = summary_of(rows_of(runs, dict.fromkeys("abc", "l1")))
    assert summary["auc_best_rival_same_allocation_repaired"] == pytest.approx(0.72)
    assert summary["routing_points"] == pytest.approx(3.0)
    assert summary["worst_against_l1_points"] == pytest.approx(10.0)


def test_differences_are_over_the_draws_that_both_were_run_with() -> None:
    l1 = always("l1")
    runs = [run_of(n, method, a) for n in "abc" for method, a in ((SELECTOR, 0.6), (l1, 0.5))]
    # Another draw, bad for everybody, that one of the two has not been run with yet.
    later = [replace(run_of(n, SELECTOR, 0.3), draw=1) for n in "abc"]
    summary = summary_of(rows_of([*runs, *later], dict.fromkeys("abc", "l1")))
    assert summary["selector_over_l1_points"] == pytest.approx(10.0)
    assert summary["auc_selector"] == pytest.approx(0.45)
    assert rows_of([*runs, *later], dict.fromkeys("abc", "l1"))["a", SELECTOR].draws == 2


def test_means_are_over_the_networks_that_all_rivals_were_run_on() -> None:
    rivals = [*SINGLES, *(name for name in RIVALS if METHODS[name].default)]
    rivals.append(always("reconstruction_fisher"))
    runs = [run_of("whole", name, 0.4) for name in rivals] + [run_of("whole", SELECTOR, 0.6)]
    alone = [run_of("begun", SELECTOR, 0.1)]
    best = {"whole": "l1", "begun": "l1"}
    assert summary_of(rows_of(runs + alone, best)) == pytest.approx(summary_of(rows_of(runs, best)))
    assert summary_of(rows_of(alone, best))["auc_selector"] == pytest.approx(0.1)


def test_what_third_party_networks_lose(tmp_path: Path) -> None:
    runs = []
    for network, lead in (("a", 0.01), ("b", 0.02), ("c", 0.06)):
        runs += [run_of(network, SELECTOR, 0.7 + lead), run_of(network, always("l1"), 0.7)]
    rows = third_party.rows_of(runs, dict.fromkeys("abc", "mnist"))
    summary = third_party.summary_of(rows)
    assert summary["third_party_tested"] == 3
    start = runs[0].points[0].accuracy
    unrepaired = [100 * (start - 0.7 - lead) for lead in (0.01, 0.02, 0.06)]
    assert summary["third_party_median_drop_50_unrepaired"] == pytest.approx(unrepaired[1])
    # Repaired networks are five points above the others here.
    assert summary["third_party_median_drop_50"] == pytest.approx(unrepaired[1] - 5)
    assert summary["third_party_median_drop_50_l1"] == pytest.approx(100 * (start - 0.75))
    assert summary["third_party_over_l1_points"] == pytest.approx(3.0)
    assert summary["third_party_over_l1_points_worst"] == pytest.approx(1.0)
    assert "third_party_routing_points" not in summary  # It was not run.
    table = third_party.markdown(rows)
    assert f"| a | mnist | {100 * start:.1f} | 71.0 | 76.0 | 75.0 | - | - |" in table
    assert f"| *median of what is lost* |  |  | -{unrepaired[1]:.1f} |" in table
    assert differences_in_words(summary, third_party.WORDS)[0].startswith(
        "The selector over L1 with even widths: +3"
    )
    # A method's median is of the networks that it got through on.
    more = third_party.rows_of([*runs, run_of("d", SELECTOR, 0.5)], dict.fromkeys("abcd", "mnist"))
    summary = third_party.summary_of(more)
    assert summary["third_party_median_drop_50_networks"] == 4
    assert summary["third_party_median_drop_50_l1_networks"] == 3
    assert f"-{100 * (start - 0.75):.1f} (3 of 4)" in third_party.markdown(more)


def test_what_imagenet_networks_lose_is_read_from_the_repair_benchmark(tmp_path: Path) -> None:
    assert third_party.imagenet_summary(tmp_path) == {}
    right = {"unpruned": 0.7, "pruned": 0.4, "repaired": 0.65}
    row = {"dataset": "imagenet-sample", "role": "test", "failed": None, "accuracies": right}
    others = [{**row, "role": "learn"}, {**row, "dataset": "mnist"}, {"network": "timed"}]
    (tmp_path / "repair.json").write_text(json.dumps({"rows": [row, *others]}))
    assert third_party.imagenet_summary(tmp_path) == {
        "imagenet_networks": 1,
        "imagenet_median_drop_80": 5.0,
        "imagenet_median_drop_80_unrepaired": 30.0,
    }


def test_the_cost_of_routing_is_a_ratio_of_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        resnet50_cost, "random_network", lambda: small("residual", 12, norm=True).float()
    )
    monkeypatch.setattr(resnet50_cost, "random_images", lambda *_: data(32, 8, dtype=torch.float32))
    assert resnet50_cost.ratio(tmp_path) == {}
    summary = resnet50_cost.run(32, 8, 8, tmp_path)
    seconds = summary["selector_seconds"], summary["torch_pruning_seconds"]
    assert min(seconds) > 0
    assert resnet50_cost.ratio(tmp_path) == {resnet50_cost.RATIO: summary[resnet50_cost.RATIO]}


def test_the_documents_get_the_means_and_keep_the_rest(tmp_path: Path) -> None:
    page, readme = tmp_path / "benchmarks.md", tmp_path / "README.md"
    gains = "<!-- gains: begin -->\n<!-- gains: end -->\n"
    page.write_text(f"{gains}above\n{START}\nold\n{END}\nbelow\n")
    readme.write_text(f"above\n<!-- headline: begin -->\n<!-- headline: end -->\n{gains}")
    with pytest.raises(SelectorError, match="run benchmark-networks first"):
        update_pages(page, readme, tmp_path)
    runs = [run_of("one", SELECTOR, 0.8), run_of("one", MYOPIC, 0.7, 2000)]
    table = rows_of([*runs, run_of("one", always("l2"), 0.6)], {"one": "l2"})
    rows = [{**row.flat, "network": "mean"} for row in table.values()]
    name = "repair_points"
    summary = {name: 9.5, f"{name}_low": 7.0, f"{name}_high": 12.0, f"{name}_worst": -1.0}
    summary |= {f"widths_points{end}": x for end, x in (("", 1), ("_low", -1), ("_high", 3))}
    summary["widths_points_worst"] = -2
    (tmp_path / "networks.json").write_text(json.dumps({"rows": rows, "summary": summary}))
    update_pages(page, readme, tmp_path)
    text = page.read_text()
    assert f"above\n{START}\n| method |" in text
    assert "selector: +9.5 points (+7.0 to +12.0; on the worst network -1.0).\n" in text
    assert "+1.0 points (-1.0 to +3.0; on the worst network -2.0). An interval" in text
    assert "+9.5 points" in readme.read_text()
    assert "| selector | 80.0 |" in text
    assert "| 2 k |" in text
    assert text.endswith(f"{END}\nbelow\n")
    assert "\nold\n" not in text
    assert "| always l2 | 60.0 |" in text
    assert "| selector | 80.0 |" in readme.read_text()
    assert "always l2" not in readme.read_text()
    page.write_text("no marks")
    with pytest.raises(SelectorError, match="has no lines <!-- networks: begin -->"):
        update_pages(page, readme, tmp_path)


def test_the_documents_hold_what_the_result_files_say(tmp_path: Path) -> None:
    page, readme = tmp_path / "benchmarks.md", tmp_path / "README.md"
    for copied, original in ((page, ROOT / "docs" / "benchmarks.md"), (readme, ROOT / "README.md")):
        shutil.copyfile(original, copied)
    update_pages(page, readme, RESULTS)
    update_page(page)
    card = tmp_path / "card.md"
    shutil.copyfile(ROOT / "models" / "README.md", card)
    update_card(card)
    assert card.read_text() == (ROOT / "models" / "README.md").read_text()
    assert page.read_text() == (ROOT / "docs" / "benchmarks.md").read_text()
    assert readme.read_text() == (ROOT / "README.md").read_text()
