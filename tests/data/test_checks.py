"""Objects of the wrong kind are refused by name before anything is read or changed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from selector.data.checks import is_number, share, whole_number
from selector.data.loss import evaluate
from selector.errors import SelectorError
from selector.learning.compare import compare
from selector.learning.selector import SaliencySelector
from selector.network.checkpoint import load_pruned, save_pruned
from selector.network.tracing import find_groups
from selector.oracle.oracle import loss_changes
from selector.planning.choose import choose
from selector.planning.composition.myopic import Myopic
from selector.pruning.apply import apply_plan
from selector.pruning.optimizer import rebind
from selector.pruning.prune import prune
from selector.recording.record import record
from selector.repair.reconstruction import reconstruct
from selector.saliency.scoring import score
from tests.networks import data, small

Call = Callable[[object], object]


def network() -> nn.Module:
    return small("plain").eval()


MODELS: dict[str, tuple[object, str]] = {
    "path": ("trained.pt", "not the path 'trained.pt'"),
    "Path": (Path("trained.pt"), "not the path 'trained.pt'"),
    "function": (network, "not the function network; pass what it returns"),
    "class": (nn.Linear, r"not the class Linear; pass Linear\(...\)"),
    "state dict": (network().state_dict(), "not a mapping of tensors; .*load_state_dict"),
    "None": (None, "not None"),
    "number": (3, "not 3"),
    "list": ([network()], "not a list"),
}
CALLS: dict[str, Call] = {
    "prune": lambda m: prune(m, data(), criterion="l1", keep_macs=0.5),  # type: ignore[arg-type]
    "choose": lambda m: choose(m, data(), criterion="l1", keep_macs=0.5),  # type: ignore[arg-type]
    "score": lambda m: score(m, data(), ["l1"]),  # type: ignore[arg-type]
    "evaluate": lambda m: evaluate(m, data()),  # type: ignore[arg-type]
    "loss_changes": lambda m: loss_changes(m, data(), "stem", [[0]]),  # type: ignore[arg-type]
    "record": lambda m: record(m, data(), network="n"),  # type: ignore[arg-type]
    "find_groups": lambda m: find_groups(m, data()[0][0]),  # type: ignore[arg-type]
    "save_pruned": lambda m: save_pruned(m, "x.safetensors"),  # type: ignore[arg-type]
    "apply_plan": lambda m: apply_plan(m, None),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", MODELS)
def test_what_is_no_network(call: str, kind: str) -> None:
    value, message = MODELS[kind]
    with pytest.raises(SelectorError, match=rf"model must be a torch.nn.Module, {message}"):
        CALLS[call](value)


def test_a_result_is_no_network() -> None:
    result = prune(network(), data(), criterion="l1", ratio=0.3, rounds=1)
    for call in CALLS.values():
        with pytest.raises(SelectorError, match=r"a PruneResult; pass its \.model"):
            call(result)
    with pytest.raises(SelectorError, match=r"plan must be a Plan, not a PruneResult; .*'s .plan"):
        apply_plan(network(), result)  # type: ignore[arg-type]


def pruned(**options: object) -> Callable[[], object]:
    return lambda: prune(network(), data(), **{"keep_macs": 0.7, **options})  # type: ignore[arg-type]


def by_shares(**options: object) -> Callable[[], object]:
    return lambda: prune(network(), data(), criterion="l1", **options)  # type: ignore[arg-type]


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "loss name": (pruned(loss="mse"), "loss='mse' must be a function .*MSELoss"),
    "loss class": (pruned(loss=nn.MSELoss), r"not the class MSELoss; pass MSELoss\(\)"),
    "loss number": (pruned(loss=0.1), "loss=0.1 must be a function"),
    "criterion loss": (pruned(criterion=nn.CrossEntropyLoss()), "criterion must be a name .*loss="),
    "criterion None": (pruned(criterion=None), "criterion must be a name .*not None"),
    "criterion list": (pruned(criterion=["l1"]), "criterion must be a name"),
    "finetune number": (
        pruned(finetune=3),
        r"finetune must be a function.*\(model, round\), not 3",
    ),
    "finetune class": (pruned(finetune=dict), "finetune must be a function"),
    "selector path": (pruned(selector="my"), "selector must be a SaliencySelector, not 'my'.*load"),
    "selector class": (pruned(selector=SaliencySelector), "selector must be a SaliencySelector"),
    "myopic": (
        pruned(criterion="oracle", allocation="myopic", myopic={"images": 3}),
        "myopic must be a Myopic, not a dict",
    ),
    "ratios list": (by_shares(ratios=[0.3]), "ratios must be a mapping .*'conv1': 0.3.*not a list"),
    "ratios number": (by_shares(ratios=0.3), "ratios must be a mapping"),
    "max_ratios": (by_shares(ratio=0.3, max_ratios=0.5), "max_ratios must be a mapping"),
    "ratios of text": (
        by_shares(ratios={"stem": "0.3"}),
        r"ratios\['stem'\]='0.3' must be a share",
    ),
    "ignore text": (by_shares(ratio=0.3, ignore="stem"), r"ignore='stem' .* ignore=\['stem'\]"),
    "ignore number": (by_shares(ratio=0.3, ignore=3), "ignore must be names in a list"),
    "ignore layers": (by_shares(ratio=0.3, ignore=[nn.Linear(2, 2)]), "ignore must be names"),
    "metrics text": (lambda: score(network(), data(), "l1"), r"metrics='l1' .* metrics=\['l1'\]"),
    "rebind": (lambda: rebind(network(), None), "optimizer must be an Optimizer, not a Small"),  # type: ignore[arg-type]
    "rebind model": (
        lambda: rebind(torch.optim.SGD(network().parameters()), network()),  # type: ignore[arg-type]
        "result must be a PruneResult, not a Small; pass what prune returned",
    ),
    "reconstruct": (
        lambda: reconstruct(network(), "small.pt", data()),  # type: ignore[arg-type]
        "pruned must be a torch.nn.Module, not the path",
    ),
    "flat sets": (
        lambda: loss_changes(network(), data(), "stem", [0, 1]),  # type: ignore[list-item]
        r"holds 0.*\[\[0, 1\]\]",
    ),
    "no sets": (lambda: loss_changes(network(), data(), "stem", 3), "channel_sets=3"),  # type: ignore[arg-type]
    "fit path": (lambda: SaliencySelector().fit("records"), "records must be a Records.*load"),  # type: ignore[arg-type]
    "compare path": (lambda: compare("records"), "records must be a Records, not 'records'"),  # type: ignore[arg-type]
    "load network": (
        lambda: load_pruned(network(), "x.safetensors"),  # type: ignore[arg-type]
        "build must be a function that makes the unpruned network, not a Small",
    ),
    "load path": (lambda: load_pruned("net", "x"), "build must be a function"),  # type: ignore[arg-type]
    "record name": (lambda: record(network(), data(), network=3), "network=3 must be the name"),  # type: ignore[arg-type]
    "record ratio": (
        lambda: record(network(), data(), network="n", ratios=0.3),  # type: ignore[arg-type]
        "ratios=0.3 must be shares in a list",
    ),
    "record ratios": (
        lambda: record(network(), data(), network="n", ratios=["0.3"]),  # type: ignore[list-item]
        "ratio 0.3 is outside",
    ),
    "record contexts": (
        lambda: record(network(), data(), network="n", contexts=True),
        "contexts=True must be a whole number, 0 or more",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_of_the_wrong_kind(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises(SelectorError, match=message):
        call()


def test_a_builder_that_builds_nothing(tmp_path: Path) -> None:
    save_pruned(network(), tmp_path / "x.safetensors")
    with pytest.raises(SelectorError, match=r"what build returns must be a torch.nn.Module"):
        load_pruned(lambda: None, tmp_path / "x.safetensors")  # type: ignore[arg-type, return-value]


NUMBERS = ["rounds", "round_to", "min_channels"]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [True, np.True_, 1.0, np.float32(2), "2", np.int64(0), -1])
def test_what_is_no_whole_number(name: str, value: object) -> None:
    with pytest.raises(SelectorError, match=rf"{name}=.* must be a whole number, 1 or more"):
        by_shares(ratio=0.3, **{name: value})()


@pytest.mark.parametrize("name", ["ratio", "max_ratio", "keep_macs", "keep_params"])
@pytest.mark.parametrize("value", [True, np.True_, "0.5", np.float32(1), np.int64(1), 0.5j])
def test_what_is_no_share(name: str, value: object) -> None:
    target = {} if name != "max_ratio" else {"ratio": 0.3}
    with pytest.raises(SelectorError, match=rf"{name}=.* must be a share.* between 0 and 1"):
        by_shares(**{**target, name: value})()


@pytest.mark.parametrize("value", [True, "1", 0, -1, float("nan"), float("inf")])
def test_what_is_no_loss_change(value: object) -> None:
    with pytest.raises(SelectorError, match=r"max_loss_change=.* must be above 0"):
        by_shares(ratio=0.3, max_loss_change=value)()


def test_numbers_of_numpy_are_numbers() -> None:
    right = choose(network(), data(), criterion="l1", ratio=0.5, round_to=2, max_ratio=0.75)
    found = choose(
        network(),
        data(),
        criterion="l1",
        ratio=np.float32(0.5),  # type: ignore[arg-type]
        round_to=np.int64(2),  # type: ignore[arg-type]
        min_channels=np.uint8(1),  # type: ignore[arg-type]
        max_ratio=np.float16(0.75),  # type: ignore[arg-type]
    )
    assert found.to_json() == right.to_json()
    own = choose(network(), data(), criterion="l1", ratios={"stem": np.float32(0.5)})  # type: ignore[dict-item]
    assert own.removals == {"stem": right.removals["stem"]}
    assert by_shares(ratio=0.5, rounds=np.int32(1), max_loss_change=np.float64(99))()
    assert Myopic(images=np.int64(8)).images == 8  # type: ignore[arg-type]
    with pytest.raises(SelectorError, match="images=True must be a whole number, 2 or more"):
        Myopic(images=True)


def test_what_a_number_is() -> None:
    assert [is_number(x) for x in (1, 0.5, np.float32(1), np.int8(1))] == [True] * 4
    assert [is_number(x) for x in (True, np.True_, "1", None, 1j, torch.tensor(1.0))] == [False] * 6
    assert whole_number("n", np.int64(3), 1).__class__ is int
    assert share("s", np.float64(0.5)).__class__ is float
