"""The commands as people use them: each output is an input of the next."""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

import selector
from selector.cli.app import COMMANDS, app
from selector.demo import calibration, network
from selector.network.checkpoint import load_pruned

ROOT = Path(__file__).resolve().parents[2]
MODEL = ["--model", "selector.demo:network"]
DEMO = [*MODEL, "--data", "selector.demo:calibration"]
FAST = ["--criterion", "l1", "--rounds", "1", "--no-repair"]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def done(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, (result.stderr, result.exception)
    return result.stdout


def refused(*arguments: str) -> str:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, ""), (result.stdout, result.exception)
    return result.stderr


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_prune_writes_every_other_command_reads(here: Path) -> None:
    files = ["--output", "small.safetensors", "--plan", "plan.json", "--report", "report.html"]
    done("prune", *DEMO, "--keep-macs", "0.5", *FAST, *files, "--log", "rounds.csv")
    assert Path("rounds.csv").read_text().splitlines()[1].startswith("1,0.")
    Path("rounds.csv").unlink()
    assert sorted(p.name for p in here.iterdir()) == [
        "plan.json",
        "report.html",
        "small.safetensors",
    ]
    small = [*MODEL, "--weights", "small.safetensors"]
    found = json.loads(done("eval", *small, "--data", "selector.demo:calibration", "--json"))
    right = selector.evaluate(load_pruned(network, "small.safetensors"), calibration())
    assert found["accuracy"] == pytest.approx(right.accuracy)
    assert found["loss"] == pytest.approx(right.loss)
    assert found["seconds"] > 0
    plan = selector.Plan.load("plan.json")
    assert (found["parameters"], found["macs"]) == (plan.parameters_after, plan.macs_after)
    done("inspect", *small, "--input", "1,8,8")
    again = ["--output", "smaller.safetensors", "--json"]
    report = json.loads(done("prune", *small, *DEMO[2:], "--ratio", "0.2", *FAST, *again))
    assert report["macs"][0] == plan.macs_after
    repair = ["--plan", "plan.json", "--pruned", "small.safetensors", "--output", "r.safetensors"]
    done("repair", *DEMO, *repair)
    repaired = json.loads(done("eval", *MODEL, "--weights", "r.safetensors", *DEMO[2:], "--json"))
    assert repaired["loss"] < found["loss"]


def test_inspect_needs_no_data(here: Path) -> None:
    found = json.loads(done("inspect", *MODEL, "--input", "1x8x8", "--json"))
    groups = selector.find_groups(network(), calibration()[0][0])
    assert [row["group"] for row in found["groups"]] == list(groups.prunable)
    assert found["refused"] == dict(groups.refused)
    assert found["macs"] == groups.costs.total("macs")
    for row in found["groups"]:
        group = groups.prunable[row["group"]]
        gone = {group: group.channels}
        left = groups.costs.total("macs", gone)
        assert row["macs_share"] == pytest.approx(1 - left / found["macs"])
    text = done("inspect", *MODEL, "--input", "1,8,8")
    assert "conv1" in text
    assert "not pruned: linear: no layer reads it" in text
    assert max(map(len, text.splitlines())) <= 90
    assert "must be whole numbers" in refused("inspect", *MODEL, "--input", "wide")
    assert "the network does not run" in refused("inspect", *MODEL, "--input", "3,8,8")


def test_sensitivity_measures_what_loss_changes_measures(here: Path) -> None:
    files = ["--output", "s.parquet", "--plot", "heat.svg"]
    asked = ["sensitivity", *DEMO, "--ratios", "0.25,0.5", "--criterion", "l1", *files]
    text = done(*asked)
    rows = pq.read_table("s.parquet").to_pylist()
    assert [(row["group"], row["ratio"]) for row in rows[:2]] == [("conv1", 0.25), ("conv1", 0.5)]
    model, batches = network(), calibration()
    scores = selector.score(model, batches, ["l1"])
    for row in rows:
        least = scores[row["group"]]["l1"].argsort()[: row["removed"]].tolist()
        (change,) = selector.loss_changes(model, batches, row["group"], [least])
        assert row["loss_change_nats"] == pytest.approx(change.nats, abs=1e-6)
        assert f"{row['loss_change_nats']:+.4f}" in text
    assert "<svg" in (here / "heat.svg").read_text()
    assert not list(here.glob("*.state"))


def test_compare_prunes_by_every_method(here: Path) -> None:
    asked = ["compare", *DEMO, "--keep-macs", "0.6", "--rounds", "1", "--methods", "l1,selector"]
    found = json.loads(done(*asked, "--plot", "bars.png", "--json"))
    assert [row["method"] for row in found] == ["unpruned", "always l1", "selector"]
    right = selector.prune(network(), calibration(), keep_macs=0.6, criterion="l1", rounds=1)
    assert found[1]["loss"] == pytest.approx(right.report.after.loss, rel=1e-5)
    assert found[1]["macs"] == right.report.macs[1]
    assert (here / "bars.png").read_bytes().startswith(b"\x89PNG")
    assert "unknown method 'l2'" in refused(*asked[:-1], "l2")
    assert "give exactly one target" in refused("compare", *DEMO)


@pytest.mark.parametrize("suffix", [pytest.param("onnx", marks=pytest.mark.slow), "pt2"])
def test_export_writes_what_pytorch_computes(suffix: str, here: Path) -> None:
    if suffix == "onnx":
        pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    asked = ["export", *MODEL, "--output", f"net.{suffix}"]
    found = json.loads(done(*asked, "--input", "1,8,8", "--json"))
    assert found["bytes"] == (here / f"net.{suffix}").stat().st_size
    if found["checked_by"] is not None:
        assert found["difference"] < 1e-5
    assert sorted(path.name for path in here.iterdir()) == [f"net.{suffix}"]


def test_export_refuses_what_it_cannot_write(here: Path) -> None:
    assert "must end in .onnx or .pt2" in refused("export", *MODEL, "--output", "net.txt")
    assert "--mean does nothing without --data" in refused(
        "export", *MODEL, "--output", "net.pt2", "--mean", "0.5"
    )
    assert not list(here.iterdir())


def test_doctor_finds_this_installation_well() -> None:
    found = {row["part"]: row for row in json.loads(done("doctor", "--json"))}
    assert found["a small pruning"]["state"] == "fine"
    assert found["torch"]["state"] == "fine"
    assert "all is well" in done("doctor")


def test_a_dry_run_does_nothing(here: Path) -> None:
    files = ["--output", "small.safetensors", "--plan", "plan.json"]
    text = done("prune", *DEMO, "--keep-macs", "0.5", *files, "--dry-run")
    assert "would prune to keep_macs 0.5 in 2 rounds, with 400 images" in text
    assert "would write small.safetensors, plan.json; nothing was done" in text
    for asked in (
        ["choose", *DEMO, "--ratio", "0.3", "--output", "plan.json"],
        ["sensitivity", *DEMO, "--output", "s.parquet"],
        ["compare", *DEMO, "--keep-macs", "0.5", "--output", "c.json"],
        ["export", *MODEL, "--input", "1,8,8", "--output", "x.onnx"],
        ["record", *DEMO, "--network", "a", "--output", "records"],
    ):
        assert "nothing was done" in done(*asked, "--dry-run")
    assert not list(here.iterdir())
    assert "must be a share" in refused("prune", *DEMO, "--keep-macs", "5", "--dry-run")


CONFIG = """
model = "selector.demo:network"
data = "selector.demo:calibration"
keep-macs = 0.8
ignore = ["conv1", "conv2"]

[prune]
keep_macs = 0.7
rounds = 1
criterion = "l1"
no-repair = true

[choose]
criterion = "l1"
"""


def test_options_come_from_a_file(here: Path) -> None:
    Path("options.toml").write_text(CONFIG)
    report = json.loads(done("prune", "--config", "options.toml", "--json"))
    assert (report["goal"]["asked"], report["criterion"]) == (0.7, "l1")
    assert not {"conv1", "conv2"} & {row["group"] for row in report["rows"]}
    assert report["repair"] is None
    typed = done("prune", "--config", "options.toml", "--keep-macs", "0.75", "--json")
    assert json.loads(typed)["goal"]["asked"] == 0.75
    plan = json.loads(done("choose", "--config", "options.toml", "--json"))
    assert plan["goal"]["asked"] == 0.8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("keep-mac = 0.5", "no command has an option 'keep-mac'; did you mean 'keep-macs'?"),
        ("[prune]\nround = 3", "prune has no option 'round'"),
        ("[prun]\nrounds = 3", "'prun' is no command; did you mean 'prune'?"),
        ("keep-macs =", "is not TOML"),
    ],
)
def test_a_file_of_options_is_checked(text: str, message: str, here: Path) -> None:
    Path("options.toml").write_text(text)
    said = " ".join(refused("prune", *DEMO, "--config", "options.toml").replace("│", "").split())
    assert message in said
    assert "cannot be read" in refused("prune", *DEMO, "--config", "absent.toml").replace("\n", " ")


def test_quiet_leaves_the_result_alone(here: Path) -> None:
    asked = ["choose", *DEMO, "--ratio", "0.3", "--output", "plan.json"]
    loud, quiet = run(*asked), run(*asked, "--quiet")
    assert quiet.stdout == loud.stdout
    assert "wrote plan.json" in loud.stderr
    assert quiet.stderr == ""


def test_the_forecast_is_shown_before_the_first_cut(here: Path) -> None:
    result = run("prune", *DEMO, "--keep-macs", "0.8", "--rounds", "1", "--no-repair")
    assert result.stderr.startswith("expected: loss 0.035")


def test_seeds_reach_the_factory(here: Path) -> None:
    Path("seeded.py").write_text(
        "import torch\ndef network():\n"
        "    return torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Conv2d(4, 2, 3))\n"
    )
    asked = ["score", "--model", "seeded:network", "--metrics", "l1", "--json", *DEMO[2:]]
    one, again, other = (done(*asked, "--seed", seed) for seed in ("1", "1", "2"))
    assert one == again
    assert one != other


@pytest.mark.parametrize("name", [name for _, name, _, _ in COMMANDS])
def test_every_command_has_help_with_an_example(name: str) -> None:
    text = done(name, "--help")
    assert f"Example: saliency-selector {name}" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80


def test_help_is_quick_to_load() -> None:
    code = "import sys; from selector.cli.app import app; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "selector.cli.prune" in loaded
    assert not {"torch", "pyarrow", "lightgbm", "timm", "sklearn", "matplotlib"} & set(loaded)


def test_completion_knows_the_commands() -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "_SALIENCY_SELECTOR_COMPLETE": "complete_bash",
        "COMP_WORDS": "saliency-selector prune --keep-m",
        "COMP_CWORD": "2",
    }
    code = (
        "import sys; sys.argv[0] = 'saliency-selector'; from selector.cli.app import main; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert result.stdout.split() == ["--keep-macs"]


WATCHED = """
import os, signal
from selector.demo import calibration

class Watched:
    after, readings = 10**9, 0

    def __iter__(self):
        Watched.readings += 1
        if Watched.readings > int(os.environ.get("CTRL_C_AFTER", Watched.after)):
            os.kill(os.getpid(), signal.SIGINT)
        return iter(calibration())
"""
"""Images during whose later readings Ctrl-C is pressed."""


@pytest.fixture
def watched(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "watched", raising=False)
    Path("watched.py").write_text(WATCHED)
    # Tests that a shell began in its background ignore Ctrl-C, and so do their workers.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield here
    signal.signal(signal.SIGINT, before)


PRUNE = ["prune", *MODEL, "--data", "watched:Watched", "--keep-macs", "0.5", "--rounds", "3"]
PRUNE += ["--criterion", "l1", "--output", "small.safetensors"]


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name not in ("__pycache__", "watched.py"))


def check_resumed(folder: Path, said: str) -> None:
    """A run that was stopped and given again ends as one that was not."""
    assert "going on from small.safetensors.state" in said
    assert "resumed after round" in said
    assert left(folder) == ["small.safetensors"]
    small = load_pruned(network, folder / "small.safetensors")
    right = selector.prune(network(), calibration(), keep_macs=0.5, criterion="l1", rounds=3)
    for name, tensor in right.model.state_dict().items():
        assert torch.equal(tensor, small.state_dict()[name])


def test_ctrl_c_leaves_a_state_and_says_where(
    watched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setenv("CTRL_C_AFTER", "6")
        stopped = run(*PRUNE)
    assert (stopped.exit_code, stopped.stdout) == (130, "")
    assert "stopped by Ctrl-C after " in stopped.stderr
    assert "the state is in small.safetensors.state: give the same command" in stopped.stderr
    assert left(watched) == ["small.safetensors", "small.safetensors.state"]
    resumed = run(*PRUNE)
    assert resumed.exit_code == 0
    check_resumed(watched, resumed.stderr)


def test_the_state_of_another_command_is_not_gone_on_from(
    watched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setenv("CTRL_C_AFTER", "6")
        assert run(*PRUNE).exit_code == 130
    other = run(*PRUNE, "--min-channels", "2")
    assert other.exit_code == 0
    assert "held the state of another command, and is begun again" in other.stderr
    assert left(watched) == ["small.safetensors"]


def test_ctrl_c_before_the_first_round_leaves_nothing(
    watched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CTRL_C_AFTER", "0")
    stopped = run(*PRUNE)
    assert (stopped.exit_code, stopped.stdout) == (130, "")
    assert "stopped by Ctrl-C before" in stopped.stderr
    assert left(watched) == []


def test_a_sensitivity_goes_on_after_ctrl_c(watched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["sensitivity", *MODEL, "--data", "watched:Watched", "--criterion", "l1"]
    asked += ["--output", "s.parquet"]
    with monkeypatch.context() as patched:
        patched.setenv("CTRL_C_AFTER", "5")
        stopped = run(*asked)
    assert stopped.exit_code == 130
    assert "stopped by Ctrl-C midway; the state is in s.parquet.state" in stopped.stderr
    kept = len(list((watched / "s.parquet.state").glob("*.kept.json")))
    assert 0 < kept < 4
    assert run(*asked).exit_code == 0
    assert left(watched) == ["s.parquet"]
    assert len(pq.read_table("s.parquet")) == 16


@pytest.mark.slow
def test_ctrl_c_in_a_process_of_its_own(watched: Path) -> None:
    def command(after: str) -> "subprocess.CompletedProcess[str]":
        paths = f"{ROOT}{os.pathsep}{watched}"
        return subprocess.run(
            [sys.executable, "-m", "selector.cli", *PRUNE],
            env={**os.environ, "PYTHONPATH": paths, "CTRL_C_AFTER": after},
            capture_output=True,
            text=True,
            check=False,
        )

    stopped = command("6")
    assert (stopped.returncode, stopped.stdout) == (130, "")
    assert "Traceback" not in stopped.stderr
    resumed = command("999")
    assert resumed.returncode == 0, resumed.stderr
    check_resumed(watched, resumed.stderr)


@pytest.mark.slow
def test_three_commands_from_a_checkpoint_to_a_small_onnx_file_and_a_report(here: Path) -> None:
    """A `.pth` of torchvision's and a folder of images; no Python."""
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    torch.manual_seed(0)
    model = models.resnet18(num_classes=4)
    torch.save({"model": model.state_dict(), "args": argparse.Namespace(lr=0.1)}, "net.pth")
    for number in range(64):
        folder = here / "images" / f"class{number % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (40, 36, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    name = ["--model", "torchvision:resnet18"]
    images = ["--data", "images", "--size", "32"]
    small = [*name, "--weights", "small.safetensors"]
    files = ["--output", "small.safetensors", "--report", "report.html"]
    asked = ["--keep-macs", "0.5", "--rounds", "2", "--json"]
    report = json.loads(done("prune", *name, "--weights", "net.pth", *images, *asked, *files))
    scored = json.loads(done("eval", *small, *images, "--json"))
    assert scored["macs"] == pytest.approx(report["macs"][1])
    assert scored["macs"] <= 0.51 * report["macs"][0]
    assert scored["images"] == 64
    exported = json.loads(
        done("export", *small, "--size", "32", "--output", "small.onnx", "--json")
    )
    assert exported["bytes"] < 0.7 * (here / "net.pth").stat().st_size
    assert exported["difference"] is None or exported["difference"] < 1e-4
    assert (here / "report.html").read_text().startswith("<!")
