"""Weights in every form that they are saved in load, or the file is refused by name."""

import argparse
import copy
import json
import resource
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from selector.cli.weights import load_weights
from selector.errors import SelectorError
from selector.network.checkpoint import load_pruned, load_tensors, save_pruned
from selector.planning.plan import Plan
from selector.pruning.prune import prune
from selector.saliency.scoring import score
from tests.cli.test_app import MODEL, TAYLOR, done, here, on_images, run, user_network
from tests.networks import STYLES, data, small

__all__ = ["here"]  # A fixture.

Tensors = dict[str, Tensor]


def trained() -> nn.Module:
    return small("plain", 6, seed=7, norm=True).float()


def plain() -> nn.Module:
    return small("plain", 6, norm=True).float()


def renamed(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def prefixed(prefix: str) -> Callable[[Tensors], object]:
    return lambda tensors: renamed(prefix, tensors)


FORMS: dict[str, Callable[[Tensors], object]] = {
    "bare": lambda tensors: tensors,
    "state_dict": lambda tensors: {"epoch": 3, "state_dict": tensors, "optimizer": {"lr": 0.1}},
    "model": lambda tensors: {"model": tensors, "args": {"depth": 3}},
    "model_state_dict": lambda tensors: {"model_state_dict": tensors, "loss": 0.5},
    "nested": lambda tensors: {"state_dict": {"model": tensors}},
    "module.": prefixed("module."),
    "_orig_mod.": prefixed("_orig_mod."),
    "both": prefixed("module._orig_mod."),
    "both the other way": prefixed("_orig_mod.module."),
    "lightning": lambda tensors: {"state_dict": prefixed("model.")(tensors)},
    "averaged": lambda t: {**prefixed("module.")(t), "n_averaged": torch.tensor(3)},  # type: ignore[dict-item]
    "compiled inside": lambda t: {
        name.replace("next.", "next._orig_mod."): value for name, value in t.items()
    },
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", ["pt", "pth", "ckpt", "PT"])
def test_checkpoints_of_torch(form: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights.{suffix}"
    torch.save(FORMS[form](trained().state_dict()), path)
    found = load_weights(plain(), path)
    assert_same(found, trained())


@pytest.mark.parametrize("form", ["bare", "module.", "_orig_mod.", "both", "compiled inside"])
def test_safetensors_with_prefixes(form: str, tmp_path: Path) -> None:
    tensors = FORMS[form](trained().state_dict())
    assert isinstance(tensors, dict)
    save_file(tensors, tmp_path / "w.safetensors")
    assert_same(load_weights(plain(), tmp_path / "w.safetensors"), trained())


def assert_same(one: nn.Module, other: nn.Module) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


REFUSED: dict[str, tuple[object, str]] = {
    "module": (nn.Linear(2, 2), "holds 'weight', which the network does not have"),
    "module inside": ({"model": nn.Linear(2, 2)}, "holds 'weight', which the network"),
    "list": ([torch.ones(2)], "holds a list, and no mapping of tensors"),
    "nothing": ({"epoch": 3, "lr": 0.1}, "holds no weights; its keys are epoch, lr"),
    "empty": ({}, "holds no weights"),
    "classes": (
        {**trained().state_dict(), "head.weight": torch.ones(9, 7)},
        "'head.weight' has sh",
    ),
    "channels": (
        {**trained().state_dict(), "stem.weight": torch.ones(6, 1, 3, 3)},
        "'stem.weight'",
    ),
    "others": ({"backbone.conv.weight": torch.ones(2)}, "holds 'backbone.conv.weight', which"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_checkpoints_that_are_refused(name: str, tmp_path: Path) -> None:
    content, message = REFUSED[name]
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(SelectorError, match=rf"w\.pt.*{message}"):
        load_weights(plain(), tmp_path / "w.pt")


@pytest.mark.parametrize("content", [b"", b"rubbish", b"PK\x03\x04rubbish", b"\x80\x02."])
def test_files_that_are_no_checkpoints(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    (tmp_path / "w.safetensors").write_bytes(content)
    for name in ("w.pt", "w.safetensors", "absent.pt", "absent.safetensors"):
        with pytest.raises(SelectorError, match=name):
            load_weights(plain(), tmp_path / name)


class Tied(nn.Module):
    """A decoder that shares its encoder's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 4), nn.Linear(4, 4)
        self.decoder.weight = self.encoder.weight


STRANGE = b"cargparse\nNamespace\n0"
"""A class that `weights_only` refuses, so that the file is read with stand-ins."""
GREEDY = {
    "a place among 2^27 objects": b"\x80\x02" + STRANGE + b"}r\x00\x00\x00\x08.",
    "2^33 bytes to be filled": b"\x80\x05" + STRANGE + b"\x96\x00\x00\x00\x00\x02\x00\x00\x00.",
    "a text of 2^32 bytes": b"\x80\x02" + STRANGE + b"X\xff\xff\xff\xff.",
}
"""Pickles of a few bytes that ask for gigabytes."""


@pytest.mark.parametrize("name", GREEDY)
def test_a_small_pickle_takes_little_memory(name: str, tmp_path: Path) -> None:
    torch.save({"layer": torch.zeros(2)}, tmp_path / "whole.pt")
    path = tmp_path / "greedy.pt"
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(path, "w") as changed:
        for part in whole.namelist():
            pickled = part.endswith("data.pkl")
            changed.writestr(part, GREEDY[name] if pickled else whole.read(part))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SelectorError, match=r"greedy\.pt"):
        load_weights(nn.Linear(2, 2), path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # 1 GiB


def test_tied_tensors_are_saved_once(tmp_path: Path) -> None:
    model, other = Tied(), Tied()
    save_model(model, str(tmp_path / "w.safetensors"))
    found = load_weights(other, tmp_path / "w.safetensors")
    assert_same(found, model)
    assert other.decoder.weight is other.encoder.weight
    with pytest.raises(SelectorError, match=r"lacks 'decoder\.bias'"):
        load_tensors(
            Tied(), {"encoder.weight": torch.ones(4, 4), "encoder.bias": torch.ones(4)}, "w"
        )


@pytest.mark.parametrize("style", STYLES)
def test_the_command_s_own_pruned_networks(style: str, tmp_path: Path) -> None:
    model = small(style, 8, norm=True).eval()
    result = prune(model, data(), criterion="l1", ratio=0.4, rounds=1)
    save_pruned(result.model, tmp_path / "small.safetensors")
    found = load_weights(small(style, 8, norm=True), tmp_path / "small.safetensors")
    assert_same(found, result.model)
    images = data()[0][0]
    assert torch.equal(found.eval()(images), result.model.eval()(images))


@pytest.mark.parametrize(
    ("name", "other", "message"),
    [
        ("head", nn.Linear(7, 3), r"'head' has 3 outputs \(classes\) there and 5"),
        ("stem", nn.Conv2d(1, 6, 3, padding=1, bias=False), "'stem' has 1 input channels there"),
    ],
)
@pytest.mark.parametrize("pruned", [False, True])
def test_other_classes_or_input_channels(
    name: str, other: nn.Module, message: str, pruned: bool, tmp_path: Path
) -> None:
    model = plain()
    setattr(model, name, copy.deepcopy(other))
    if pruned:
        images, labels = data(dtype=torch.float32)[0]
        batches = [(images[:, :1] if name == "stem" else images, labels.clamp(max=2))]
        model = prune(model, batches, criterion="l1", ratios={"stem": 0.2}, rounds=1).model
    save_pruned(model, tmp_path / "w.safetensors")
    with pytest.raises(SelectorError, match=message):
        load_pruned(plain, tmp_path / "w.safetensors")
    with pytest.raises(SelectorError, match=message):
        load_weights(plain(), tmp_path / "w.safetensors")


def test_weights_on_the_command_line(here: Path) -> None:
    done(*on_images("score", "--metrics", "l1"))  # Imports the user's code.
    torch.save({"state_dict": user_network(5).state_dict()}, "w.pt")
    found = json.loads(done(*on_images("score", "--metrics", "l1", "--weights", "w.pt", "--json")))
    right = score(user_network(5), [(torch.zeros(2, 3, 8, 8), None)], ["l1"])
    assert found["first"]["l1"] == pytest.approx(right["first"]["l1"].tolist())


def test_a_pruned_network_is_pruned_further(here: Path) -> None:
    asked = on_images("prune", "--ratio", "0.3", *TAYLOR, "--rounds", "1", "--json")
    first = json.loads(done(*asked, "--output", "one.safetensors"))
    again = json.loads(done(*asked, "--weights", "one.safetensors", "--output", "two.safetensors"))
    assert again["parameters"][0] == first["parameters"][1]
    assert again["parameters"][1] < again["parameters"][0]


def test_a_plan_is_applied_from_the_shell(here: Path) -> None:
    files = ["--plan", "p.json", "--output", "right.safetensors"]
    done(
        *on_images("prune", "--ratio", "0.4", *TAYLOR, "--rounds", "1", "--no-recalibrate", *files)
    )
    plan = Plan.load("p.json")
    asked = ["apply", "--plan", "p.json", *MODEL, "--output"]
    found = json.loads(done(*asked, "small.safetensors", "--json"))
    assert found["parameters"] == [plan.parameters_before, plan.parameters_after]
    right = load_pruned(user_network, "right.safetensors")
    assert_same(load_pruned(user_network, "small.safetensors"), right)
    text = done(*asked, "other.safetensors", "--data", "images.parquet", "--batch-size", "16")
    assert text.startswith("parameters ")
    assert_same(load_pruned(user_network, "other.safetensors"), right)
    for arguments, message in (
        (["--batch-size", "16"], "--batch-size does nothing without --data"),
        (["--compensate"], "pass batches"),
        (["--weights", "absent.pt"], "absent.pt cannot be read"),
        (["--plan", "user_code.py"], "this is not a plan"),
        (["--output", "p.json"], "is read by this command"),
    ):
        result = run(*asked, "third.safetensors", *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert message in result.stderr
    assert not Path("third.safetensors").exists()


def test_a_plan_is_explained_from_the_shell(here: Path) -> None:
    direct = done(*on_images("explain", "--ratio", "0.3", "--json"))
    done(*on_images("choose", "--ratio", "0.3", "--output", "p.json"))
    asked = ["explain", "--plan", "p.json"]
    assert done(*asked, "--json") == direct
    assert done(*asked, "--group", "second").startswith("second: ")
    for arguments, message in (
        (["--ratio", "0.3"], "--ratio does nothing with --plan"),
        (["--size", "8"], "--size does nothing with --plan"),
        (["--model", "user_code:Tiny"], "--model does nothing with --plan"),
        (["--group", "thrd"], "nothing from a group 'thrd'"),
    ):
        result = run(*asked, *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert message in result.stderr
    assert "explain needs --model and --data, or --plan" in run("explain", *MODEL).stderr


def test_nothing_removed_is_exit_status_3(here: Path) -> None:
    asked = on_images("prune", "--ratio", "0.3", *TAYLOR, "--rounds", "1")
    limit = ["--max-loss-change", "1e-12", "--output", "s.safetensors"]
    result = run(*asked, *limit)
    assert result.exit_code == 3
    assert result.stdout.startswith("nothing was removed: the target was not met")
    assert "nothing was removed" in result.stderr
    assert_same(load_pruned(user_network, "s.safetensors"), user_network())
    result = run(*asked, *limit, "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["rounds"] == 0
    assert run(*asked, "--max-loss-change", "99").exit_code == 0


def test_what_was_reached_is_written_when_a_round_fails(here: Path) -> None:
    code = Path("user_code.py").read_text()
    Path("user_code.py").write_text(
        code
        + """

class Failing:
    readings = 0

    def __iter__(self):
        Failing.readings += 1
        if Failing.readings > 12:
            raise OSError("the disk is gone")
        return iter(batches())
"""
    )
    files = ["--output", "s.safetensors", "--plan", "p.json"]
    asked = ["prune", *MODEL, "--data", "user_code:Failing", "--keep-macs", "0.3", *TAYLOR]
    result = run(*asked, *files)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "the disk is gone" in result.stderr
    assert "wrote s.safetensors" in result.stderr
    plan = Plan.load("p.json")
    assert plan.choices
    small_model = load_pruned(sys.modules["user_code"].Tiny, "s.safetensors")
    assert sum(p.numel() for p in small_model.parameters()) == plan.parameters_after


def test_version_and_exit_statuses_are_documented() -> None:
    from importlib.metadata import version

    assert done("--version") == f"saliency-selector {version('saliency-selector')}\n"
    text = " ".join(done("--help").split())
    assert "Exit status: 0" in text
    assert "3 if nothing could be removed" in text


class Surprise:
    """Runs code when it is unpickled, unless somebody is careful."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.write_text, (Path("surprise.txt"), "ran"))


@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_are_read_without_running_their_code(
    zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = trained()
    held = {
        "model": model.state_dict(),
        "args": argparse.Namespace(lr=0.1, folder=Path("x")),
        "optimizer": torch.optim.SGD(model.parameters(), 0.1, momentum=0.9).state_dict(),
        "best": np.float64(0.5),
        "surprise": Surprise(),
    }
    torch.save(held, "w.pth", _use_new_zipfile_serialization=zipped)
    assert_same(load_weights(plain(), Path("w.pth")), trained())
    assert not Path("surprise.txt").exists()


def test_whole_networks_give_their_weights(tmp_path: Path) -> None:
    torch.save(trained(), tmp_path / "w.pth")
    assert_same(load_weights(plain(), tmp_path / "w.pth"), trained())


def other(seed: int) -> Tensors:
    return small("plain", 6, seed=seed, norm=True).float().state_dict()


def test_of_several_sets_of_weights_one_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"state_dict": trained().state_dict(), "state_dict_ema": other(3)}, path)
    with pytest.raises(SelectorError, match="state_dict, state_dict_ema; say which by --weights"):
        load_weights(plain(), path)
    assert_same(load_weights(plain(), path, "state_dict"), trained())
    found = load_weights(plain(), path, "state_dict_ema").state_dict()
    assert all(torch.equal(found[name], value) for name, value in other(3).items())
    with pytest.raises(SelectorError, match="no weights under 'ema'; it has: state_dict, state_d"):
        load_weights(plain(), path, "ema")


def test_a_student_is_told_from_its_teacher(tmp_path: Path) -> None:
    path = tmp_path / "w.ckpt"
    parts = renamed("student.", trained().state_dict()) | renamed("teacher.", other(3))
    torch.save({"state_dict": parts}, path)
    with pytest.raises(SelectorError, match=r"state_dict/student, state_dict/teacher; say which"):
        load_weights(plain(), path)
    assert_same(load_weights(plain(), path, "student"), trained())


def test_what_is_beside_the_network_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = renamed("model.", trained().state_dict()) | {"criterion.weight": torch.ones(3)}
    torch.save({"state_dict": parts, "epoch": 3}, tmp_path / "w.ckpt")
    with caplog.at_level("INFO", "selector"):
        assert_same(load_weights(plain(), tmp_path / "w.ckpt"), trained())
    assert "left out criterion.weight" in caplog.text


def test_equal_sets_need_no_choice(tmp_path: Path) -> None:
    held = {"model": trained().state_dict(), "best_model": trained().state_dict()}
    torch.save(held, tmp_path / "w.pth")
    assert_same(load_weights(plain(), tmp_path / "w.pth"), trained())
