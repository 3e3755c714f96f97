"""The benchmark of coverage: its checks find what they are for, and its trials tell the truth."""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from selector.errors import SelectorError
from selector.network.checkpoint import load_pruned, save_pruned
from selector.network.surgery import Cut, apply_cuts
from training.benchmarks.coverage import catalogue, checks, report, rival, runs, trial
from training.benchmarks.coverage.masking import Place, masked_copy
from training.benchmarks.coverage.runs import CoverageRun
from training.benchmarks.coverage.subject import Subject
from training.benchmarks.coverage.trained_like import trained_like
from training.benchmarks.coverage.trial import Finding, Trial
from training.benchmarks.coverage.written_networks import OptionA
from training.reporting.result_file import RESULTS


def chain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 16, 5),
    )


def subject_of(build: Callable[[], nn.Module], **changes: Any) -> Subject:
    made = Subject(
        name="made/chain",
        source="written",
        family="chain",
        build=build,
        shape=(3, 8, 8),
        classes=5,
        images=8,
    )
    return replace(made, **changes)


CHAIN = subject_of(chain)
CUTS = (Cut("0", "out", (1, 4)), Cut("1", "both", (1, 4)), Cut("3", "in", (1, 4)))


def cut_copy(model: nn.Module, cuts: tuple[Cut, ...]) -> nn.Module:
    small = trained_like(CHAIN)
    small.load_state_dict(model.state_dict())
    apply_cuts(small, cuts)
    return small


def test_a_right_cut_is_exact_and_a_wrong_one_is_found() -> None:
    model = trained_like(CHAIN)
    right = checks.exactness(model, cut_copy(model, CUTS), CUTS, CHAIN)
    assert right.exact
    assert right.precision == "float64"
    assert right.changed > 1e-2
    shifted = (Cut("0", "out", (1, 5)), Cut("1", "both", (1, 4)), Cut("3", "in", (1, 4)))
    wrong = checks.exactness(model, cut_copy(model, shifted), CUTS, CHAIN)
    assert not wrong.exact
    assert wrong.gap > 1e-3
    assert not model._modules["0"]._forward_hooks  # type: ignore[union-attr]


def test_masking_by_hooks_is_zeroing_weights() -> None:
    model = trained_like(CHAIN)
    images = CHAIN.inputs(3, 1)
    with torch.no_grad():
        found = masked_copy(model, CUTS)(images)
        model[3].weight[:, [1, 4]] = 0
        torch.testing.assert_close(found, model(images))


def test_heads_of_attention_that_are_gone_give_nothing() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(12, 3, batch_first=True).eval()
    tokens = torch.randn(2, 5, 12)
    gone = tuple(start + i for start in (4, 16, 28) for i in range(4))
    cuts = [Cut("", "out", gone), Cut("out_proj", "in", gone[:4]), Cut("", "in", (3,))]
    with torch.no_grad():
        found = masked_copy(attention, cuts)(tokens, tokens, tokens)[0]
        # Three heads by hand; the second gives nothing, and nothing reads input 3.
        rest = tokens.index_fill(2, torch.tensor(3), 0)
        made = rest @ attention.in_proj_weight.T + attention.in_proj_bias
        parts = zip(*(part.split(4, 2) for part in made.chunk(3, 2)), strict=True)
        heads = [(q @ k.mT / 2).softmax(-1) @ v for q, k, v in parts]
        heads[1] = torch.zeros_like(heads[1])
        expected = attention.out_proj(torch.cat(heads, 2))
    torch.testing.assert_close(found, expected)


class ReadsWeights(nn.Module):
    """As torchvision's Swin: the layers are never called, a function reads their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.linear(x, self.first.weight, self.first.bias)
        return functional.linear(hidden + 1, self.second.weight, self.second.bias)


def test_layers_that_are_never_called_are_masked_too() -> None:
    torch.manual_seed(0)
    model, values = ReadsWeights().eval(), torch.randn(5, 4)
    cuts = [Cut("first", "out", (1, 4)), Cut("second", "in", (1, 4))]
    with torch.no_grad():
        found = masked_copy(model, cuts)(values)
        hidden = (model.first(values) + 1).index_fill(1, torch.tensor([1, 4]), 0)
        torch.testing.assert_close(found, model.second(hidden))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.LayerNorm(6), (2, 5, 6)),
        (nn.RMSNorm(6), (2, 5, 6)),
        (nn.GroupNorm(2, 6), (2, 6, 4)),
    ],
)
def test_a_normalisation_is_taken_over_what_is_kept(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(6, generator=generator))
    values = torch.randn(shape, generator=generator)
    kept, gone = [0, 2, 3, 5], (1, 4)
    with torch.no_grad():
        found = masked_copy(nn.Sequential(layer), [Cut("0", "both", gone)])(values)
    axis = 1 if isinstance(layer, nn.GroupNorm) else 2
    assert bool((found.index_select(axis, torch.tensor(gone)) == 0).all())
    few = values.index_select(axis, torch.tensor(kept))
    scale, shift = layer.weight[kept], None if isinstance(layer, nn.RMSNorm) else layer.bias[kept]
    if isinstance(layer, nn.RMSNorm):
        expected = few / (few.square().mean(2, keepdim=True) + torch.finfo().eps).sqrt() * scale
    elif isinstance(layer, nn.LayerNorm):
        centred = few - few.mean(2, keepdim=True)
        spread = (centred.square().mean(2, keepdim=True) + layer.eps).sqrt()
        expected = centred / spread * scale + shift
    else:
        halves = few.view(2, 2, 8)
        centred = halves - halves.mean(2, keepdim=True)
        spread = (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()
        expected = (centred / spread).view(2, 4, 4) * scale.view(1, 4, 1) + shift.view(1, 4, 1)
    torch.testing.assert_close(found.index_select(axis, torch.tensor(kept)), expected)
    assert layer.weight.shape == (6,)


def test_groups_that_go_as_a_whole_are_not_normalised() -> None:
    layer, values = (
        nn.GroupNorm(3, 6),
        torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)),
    )
    with torch.no_grad():
        found = masked_copy(nn.Sequential(layer), [Cut("0", "both", (2, 3))])(values)
        right = layer(values)  # Every group is normalised by itself.
        right[:, 2:4] = 0
    torch.testing.assert_close(found, right)


def test_macs_are_those_of_products_in_attention_and_lstm_too() -> None:
    # Conv: 8 of 36 positions and 27 inputs, 6 of 16 positions and 72 inputs; linear: 96 to 5.
    assert checks.macs_of(trained_like(CHAIN), CHAIN) == 8 * 36 * 27 + 6 * 16 * 72 + 96 * 5

    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.lstm = nn.LSTM(8, 4, batch_first=True)

        def forward(self, images: Tensor) -> Tensor:
            tokens = images.flatten(1).view(len(images), 24, 8)
            return self.lstm(self.attention(tokens, tokens, tokens, need_weights=False)[0])[0]

    attention = 24 * 8 * 32 + 2 * 24 * 24 * 8
    recurrent = 24 * (8 * 16 + 4 * 16)
    assert checks.macs_of(Attends(), subject_of(Attends)) == attention + recurrent


def test_trained_like_networks_hide_nothing() -> None:
    def scaled() -> nn.Module:
        model = chain()
        model.register_parameter("gamma", nn.Parameter(1e-6 * torch.ones(8)))
        return model

    model = trained_like(subject_of(scaled))
    assert not model.training
    for name, parameter in model.named_parameters():
        assert parameter.std() > 0, name
    assert bool((model.gamma.abs() >= 0.04).all())
    batch = subject_of(scaled).inputs(8, 99)
    with torch.no_grad():
        inner = model[0](batch)
    torch.testing.assert_close(model[1].running_mean, inner.mean((0, 2, 3)))
    again = trained_like(subject_of(scaled))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, again.state_dict()[name], rtol=0, atol=0)


def tried(subject: Subject, folder: Path, tool: trial.Tool = "selector") -> Finding:
    made = Trial(subject, folder / "found.json")
    made.go(tool)
    assert json.loads((folder / "found.json").read_text())["outcome"] == made.found.outcome
    return made.found


def test_a_plain_network_is_pruned_by_both(tmp_path: Path) -> None:
    for tool in ("selector", "torch-pruning"):
        found = tried(CHAIN, tmp_path, tool)  # type: ignore[arg-type]
        assert (found.outcome, found.faults, found.stage) == ("pruned", (), "end")
        assert found.macs is not None
        assert found.macs[1] <= 0.51 * found.macs[0]
        assert found.gap is not None
        assert found.gap < 1e-10
        assert not found.silent_wrong


class Detector(nn.Module):
    """Reads a list of images; its losses are in training mode only, of sampled positions."""

    def __init__(self) -> None:
        super().__init__()
        self.body = chain()[:5]
        self.boxes = nn.Linear(6, 4)
        self.scores = nn.Linear(6, 9)

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> object:
        found = self.body(torch.stack(images)).mean((2, 3))
        boxes, scores = self.boxes(found), self.scores(found)
        if targets is None:
            kept = [row[row.softmax(0).amax() > 0.99] for row in scores]
            return [{"scores": row} for row in kept]  # As with random weights: nothing.
        truth = torch.cat([target["boxes"] for target in targets])
        sampled = torch.randperm(len(boxes))[: len(boxes) // 2]
        return {
            "boxes": functional.smooth_l1_loss(boxes[sampled], truth[sampled]),
            "labels": functional.cross_entropy(
                scores, torch.cat([target["labels"] for target in targets])
            ),
        }


def test_a_detector_is_judged_by_its_losses(tmp_path: Path) -> None:
    subject = subject_of(Detector, detector=True, classes=None, images=4, outputs=())
    found = tried(subject, tmp_path)
    assert (found.outcome, found.reason) == ("pruned", "")
    assert found.changed is not None
    assert found.changed > 1e-4
    assert found.gap is not None
    assert found.gap < 1e-10
    model = trained_like(subject)
    wrong = deepcopy(model)
    with torch.no_grad():
        wrong.body[3].weight[0] += 1e-3  # type: ignore[index, union-attr]
    assert not checks.exactness(model, wrong, (), subject).exact
    assert not model.training


def test_a_silent_wrong_of_the_rival_is_seen(tmp_path: Path) -> None:
    subject = subject_of(partial(OptionA, 4), shape=(3, 8, 8), classes=10)
    found = tried(subject, tmp_path, "torch-pruning")
    assert found.silent_wrong
    assert found.outcome == "crash"
    assert found.reason.startswith("checks: masked is not cut")


class Broken(nn.Module):
    """Runs, but nothing in it can be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(192, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1))


def test_refusal_crash_and_part_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = tried(subject_of(Broken), tmp_path)
    assert (refused.outcome, refused.stage) == ("refused", "prune")
    assert "no prunable group" in refused.reason

    def narrow() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5))

    wide = subject_of(lambda: nn.Sequential(Wide(), narrow()))
    partly = tried(wide, tmp_path)
    assert partly.outcome == "partly", partly.reason
    assert "cannot be met" in partly.reason
    assert partly.gap is not None

    def fails(*_: object, **__: object) -> None:
        raise KeyError("lost")

    monkeypatch.setattr(trial, "prune", fails)
    crash = tried(CHAIN, tmp_path)
    assert (crash.outcome, crash.groups) == ("crash", 2)
    assert crash.reason.startswith("prune: KeyError: 'lost' (")


class Wide(nn.Module):
    """Many products that no group reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed = nn.Parameter(torch.randn(8, 8))

    def forward(self, images: Tensor) -> Tensor:
        for _ in range(20):
            images = torch.tanh(images @ self.fixed)
        return images


@pytest.mark.slow
def test_a_trial_is_stopped_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "SECONDS", 2)
    made = runs.run_one(catalogue.subject_named("written/unet"), "selector")
    assert made.found.outcome == "timeout"
    assert "stopped after" in made.found.reason


def made_run(name: str, outcome: trial.Outcome, **found: Any) -> CoverageRun:
    source = name.split("/")[0]
    tool = found.pop("tool", "selector")
    about = {"family": found.pop("family", "vgg"), "version": runs.VERSION, "code": "of before"}
    fields = {"network": name, "source": source, "tool": tool, **about}
    return CoverageRun(**fields, found=Finding(outcome=outcome, **found))  # type: ignore[arg-type]


def test_runs_are_resumed_and_failures_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    outcomes: dict[str, trial.Outcome] = {"written/unet": "pruned", "written/plain_1d": "refused"}

    def pretend(subject: Subject, tool: trial.Tool) -> CoverageRun:
        asked.append(subject.name)
        return made_run(subject.name, outcomes[subject.name], macs=(2.0, 1.0), faults=("a", "b"))

    monkeypatch.setattr(runs, "run_one", pretend)
    subjects, file = [catalogue.subject_named(name) for name in outcomes], tmp_path / runs.FILE
    first = runs.run_missing(subjects, ["selector"], file)
    assert runs.run_missing(subjects, ["selector"], file) == first
    assert asked == list(outcomes)
    outcomes["written/plain_1d"] = "pruned"
    later = runs.run_missing(subjects, ["selector"], file, again=["refused", "crash"])
    assert asked == [*outcomes, "written/plain_1d"]
    assert [one.found.outcome for one in later] == ["pruned", "pruned"]
    assert {one.network for one in runs.finished(file)} == set(outcomes)
    assert runs.run_missing(subjects, ["torch-pruning"], file, minutes=-1.0) == []


def test_the_summary_counts_what_was_run(tmp_path: Path) -> None:
    made = [
        made_run("torchvision/vgg11", "pruned", gap=1e-15, precision="float64", trace_seconds=3.0),
        made_run("torchvision/swin_t", "timeout", family="swin", reason="prune: stopped"),
        made_run("torchvision/vgg11", "crash", tool="torch-pruning", silent_wrong=True),
        made_run("timm/vit_tiny", "partly", family="vit", reach=0.5, reason="not | enough"),
        made_run("timm/resnet10t", "pruned", family="resnet", reach=0.9, trace_seconds=9.0),
        made_run("third_party/lenet", "crash", silent_wrong=True, reason="checks: masked"),
    ]
    assert report.summary_of(made) == {
        "torchvision_pruned": 1,
        "torchvision_run": 2,
        "torchvision_pruned_torch_pruning": 0,
        "timm_pruned": 1,
        "timm_run": 2,
        "third_party_pruned": 0,
        "crashes": 1,
        "silent_wrong": 1,
        "macs_within_reach_min": 0.5,
        "slowest_trace_s_cpu": 3.0,
    }
    rows = [asdict(one) for one in made]
    first, second, *_ = report.counts_of(rows)
    assert first == ["torchvision", "selector", "2", "1", "0", "0", "0", "1", "0", "1e-15"]
    assert second == ["torchvision", "torch-pruning", "1", "0", "0", "0", "1", "0", "1", "-"]
    assert ["timm/vit_tiny", "partly", "50%", "not / enough"] in report.failures_of(rows)
    page = tmp_path / "page.md"
    page.write_text("<!-- coverage: begin -->\n<!-- coverage: end -->\n")
    with pytest.raises(SelectorError, match="run benchmark-coverage first"):
        report.update_page(page, tmp_path)
    (tmp_path / "coverage.json").write_text(json.dumps({"rows": rows}))
    report.update_page(page, tmp_path)
    assert "| timm/vit_tiny | partly | 50% | not / enough |" in page.read_text()


def test_the_documents_show_the_result_file(tmp_path: Path) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
    copied = tmp_path / "page.md"
    copied.write_text(page.read_text())
    report.update_page(copied, RESULTS)
    assert copied.read_text() == page.read_text()


def test_the_rival_notes_what_it_takes_in_positions_of_the_whole_network() -> None:
    class Joined(nn.Module):
        """Two branches into one layer: their groups take from it one after the other."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1)
            self.mix, self.head = nn.Conv2d(12, 8, 3), nn.Linear(8, 5)

        def forward(self, images: Tensor) -> Tensor:
            maps = torch.cat((self.one(images), self.two(images)), 1).relu()
            return self.head(self.mix(maps).relu().mean((2, 3)))

    subject = subject_of(Joined)
    model = trained_like(subject)
    cut = rival.pruned_by_torch_pruning(model, subject, 0.5)
    lost = {(one.layer, one.side): one.indices for one in cut.cuts}
    shifted = tuple(6 + index for index in lost["two", "out"])
    assert lost["mix", "in"] == (*lost["one", "out"], *shifted)
    assert checks.exactness(model, cut.model, cut.cuts, subject).exact
    assert ("head", "out") not in lost


def test_unknown_words_are_named() -> None:
    assert report.chosen("torch-pruning,selector", runs.TOOLS) == list(runs.TOOLS)
    with pytest.raises(SelectorError, match="unknown 'nni'; known: selector, torch-pruning"):
        report.chosen("nni", runs.TOOLS)
    with pytest.raises(SelectorError, match="unknown network 'timm/nobody'; known: "):
        report.run(["timm/nobody"], ["selector"], Path("nowhere"))


def test_every_network_of_the_catalogue_has_a_name_of_its_source() -> None:
    subjects = catalogue.every_subject()
    assert sum(s.source == "torchvision" for s in subjects.values()) >= 70
    timm = [s for s in subjects.values() if s.source == "timm"]
    assert len(timm) >= 60
    assert len({s.family for s in timm}) >= 35
    assert {s.source for s in subjects.values()} <= set(report.SOURCES)


@pytest.mark.parametrize(
    "name", [name for name in catalogue.every_subject() if name.startswith("written/")]
)
def test_written_networks_run_and_train(name: str) -> None:
    subject = catalogue.subject_named(name)
    model = trained_like(subject)
    assert checks.training_fault(model, subject) is None
    assert checks.file_fault(model, subject, save_pruned, load_pruned) is None


class Standardised(nn.Conv2d):
    """A convolution whose weight is standardised over its inputs."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(images, standard(self.weight), self.bias)


def standard(weight: torch.Tensor) -> torch.Tensor:
    rows = weight.flatten(1)
    rows = (rows - rows.mean(1, keepdim=True)) / (rows.var(1, keepdim=True) + 1e-5).sqrt()
    return rows.view_as(weight)


def test_a_weight_is_standardised_over_the_inputs_that_are_kept() -> None:
    torch.manual_seed(0)
    layer, images = Standardised(6, 4, 3), torch.randn(2, 6, 5, 5)
    kept, gone = [0, 2, 3, 5], (1, 4)
    cuts = [Cut("0", "in", gone), Cut("0", "out", (2,))]
    places = {"0": {Place(0, 1, given_back=False): frozenset(gone)}}
    with torch.no_grad():
        found = masked_copy(nn.Sequential(layer), cuts, places)(images)
        expected = functional.conv2d(images[:, kept], standard(layer.weight[:, kept]), layer.bias)
        expected[:, 2] = 0
    torch.testing.assert_close(found, expected)
