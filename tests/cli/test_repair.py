"""The commands that repair: what `prune` left is repaired as `prune` itself would have."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import selector
from selector.cli.app import app
from selector.demo import calibration, network

DEMO = ["--model", "selector.demo:network", "--data", "selector.demo:calibration"]


def done(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, (result.stderr, result.exception)
    return result.stdout


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 2, (result.stdout, result.exception)
    return result.stderr


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    """A folder with a pruned, unrepaired network and its plan."""
    files = ["--output", str(tmp_path / "small.safetensors"), "--plan", str(tmp_path / "plan.json")]
    asked = ["--keep-macs", "0.5", "--criterion", "l1", "--rounds", "1", "--no-repair"]
    done("prune", *DEMO, *asked, *files)
    return tmp_path


def files(folder: Path, output: str) -> list[str]:
    names = {"--plan": "plan.json", "--pruned": "small.safetensors", "--output": output}
    return [part for option, name in names.items() for part in (option, str(folder / name))]


def test_repair_is_the_repair_of_prune(pruned: Path) -> None:
    said = json.loads(done("repair", *DEMO, *files(pruned, "repaired.safetensors"), "--json"))
    assert "layers refitted" in said["summary"]
    found = selector.load_pruned(network, pruned / "repaired.safetensors")
    whole = selector.prune(network(), calibration(), keep_macs=0.5, criterion="l1", rounds=1)
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor)
    before = selector.evaluate(
        selector.load_pruned(network, pruned / "small.safetensors"), calibration()
    )
    assert selector.evaluate(found, calibration()).loss < before.loss


def test_distil_never_ends_worse(pruned: Path) -> None:
    asked = [*files(pruned, "distilled.safetensors"), "--minutes", "0.05", "--json"]
    said = json.loads(done("distil", *DEMO, *asked))
    before, after = said["divergence"]
    assert after <= before
    selector.load_pruned(network, pruned / "distilled.safetensors")


@pytest.mark.parametrize("command", ["repair", "distil"])
def test_what_does_not_belong_together_is_refused(command: str, pruned: Path) -> None:
    asked = files(pruned, "out.safetensors")
    missing = [part.replace("small.safetensors", "gone.safetensors") for part in asked]
    assert "gone.safetensors" in refused(command, *DEMO, *missing)
    plan = json.loads((pruned / "plan.json").read_text())
    plan["parameters_before"] += 1
    (pruned / "plan.json").write_text(json.dumps(plan))
    assert "parameters" in refused(command, *DEMO, *asked)
    assert not (pruned / "out.safetensors").exists()
