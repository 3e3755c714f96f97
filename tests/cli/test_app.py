"""Every command prints text or one JSON document; a user's fault is one line, status 2."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner, Result

from selector.cli.app import app
from selector.cli.bundles import Images
from selector.cli.images import read_data
from selector.network.checkpoint import load_pruned, read_tensors, save_pruned
from selector.planning.plan import Plan
from selector.saliency.registry import METRICS, arms
from tests.made_records import made

Tensors = list[tuple[torch.Tensor, torch.Tensor]]

USER_CODE = """
import torch
from torch import nn

print("user code prints at import")


class Tiny(nn.Module):
    def __init__(self, seed=0, width=8):
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, 6, 3, padding=1)
        self.linear = nn.Linear(6, 3)

    def forward(self, images):
        maps = torch.relu(self.norm(self.first(images)))
        return self.linear(torch.relu(self.second(maps)).mean((2, 3)))


def other():
    return Tiny(seed=1, width=10)


def batches():
    chance = torch.Generator().manual_seed(0)
    images = torch.randn(24, 3, 8, 8, generator=chance)
    return list(zip(images.split(8), (torch.arange(24) % 3).split(8)))


def one_shot():
    return iter(batches())


def broken():
    raise KeyError("no such dataset")


def text():
    return "a text"


number = 3
"""
MODEL = ["--model", "user_code:Tiny"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with code, images and weights, as the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "user_code", raising=False)
    (tmp_path / "user_code.py").write_text(USER_CODE)
    (tmp_path / "syntax.py").write_text("def broken(:\n")
    chance = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (48, 8, 8, 3), generator=chance, dtype=torch.uint8)
    rows = []
    for number, image in enumerate(pixels):
        buffer = io.BytesIO()
        Image.fromarray(image.numpy()).save(buffer, "PNG")
        rows.append({"image": buffer.getvalue(), "label": number % 3})
        folder = tmp_path / "folder" / f"class{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02}.png").write_bytes(buffer.getvalue())
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "images.parquet")
    torn = bytearray((tmp_path / "images.parquet").read_bytes())
    torn[4:400] = bytes(396)
    (tmp_path / "torn.parquet").write_bytes(torn)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def done(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, (result.stderr, result.exception)
    return result.stdout


def on_images(*arguments: str, data: str = "images.parquet") -> list[str]:
    command, *rest = arguments
    return [command, *MODEL, "--data", data, "--batch-size", "16", *rest]


def user_network(seed: int = 0) -> nn.Module:
    """The user's network, from the module that a command has imported."""
    model = sys.modules["user_code"].Tiny(seed)
    assert isinstance(model, nn.Module)
    return model


def test_metrics_lists_the_table() -> None:
    rows = json.loads(done("metrics", "--json"))
    assert [row["name"] for row in rows if row["kind"] == "ranking"] == list(METRICS)
    assert [row["name"] for row in rows if row["arm"]] == arms()
    assert "random" not in arms()
    text = done("metrics")
    assert all(row["name"] in text and row["summary"] in text for row in rows)


def test_score_gives_every_channel(here: Path) -> None:
    found = json.loads(done(*on_images("score", "--metrics", "taylor, l1", "--json")))
    assert {g: list(scores) for g, scores in found.items()} == {
        "first": ["taylor", "l1"],
        "second": ["taylor", "l1"],
    }
    assert len(found["first"]["l1"]) == 8
    text = done(*on_images("score", "--metrics", "l1"))
    least = min(range(8), key=found["first"]["l1"].__getitem__)
    row = next(line.split() for line in text.splitlines() if "first" in line.split()[:1])
    assert row[:3] == ["first", "8", "l1"]
    assert row[6] == str(least)


def test_score_reads_a_folder_a_factory_and_weights(here: Path) -> None:
    l1 = on_images("score", "--metrics", "l1", "--json")
    own = done(*l1)
    save_pruned(user_network(seed=5), "weights.safetensors")
    assert done(*on_images("score", "--metrics", "l1", "--json", data="folder")) == own
    weighted = json.loads(done(*l1, "--weights", "weights.safetensors"))
    expected = read_tensors("weights.safetensors")["first.weight"].double().abs().sum((1, 2, 3))
    torch.testing.assert_close(torch.tensor(weighted["first"]["l1"], dtype=torch.float64), expected)
    batches = done("score", *MODEL, "--data", "user_code:batches", "--metrics", "l1", "--json")
    assert batches == own


def test_image_options_reach_the_batches(here: Path) -> None:
    plain, test = read_data("images.parquet", "folder", Images(images=5, batch_size=2))
    (first, labels), *rest = cast(Tensors, list(plain))
    assert [len(rest), labels.tolist()] == [2, [0, 1]]
    assert test is not None
    assert sum(len(targets) for _, targets in cast(Tensors, test)) == 48
    options = Images(images=5, batch_size=2, mean="0.4,0.5,0.6", std="0.25", size=4, bgr=True)
    (small, _), *_ = cast(Tensors, list(read_data("images.parquet", None, options)[0]))
    assert small.shape == (2, 3, 4, 4)
    bgr = Images(images=5, batch_size=2, bgr=True)
    (flipped, _), *_ = cast(Tensors, list(read_data("images.parquet", None, bgr)[0]))
    torch.testing.assert_close(flipped, first.flip(1))
    assert -1 <= float(first.min()) < -0.9


def test_choose_writes_the_plan_that_it_prints(here: Path) -> None:
    asked = on_images("choose", "--ratio", "0.5", "--criterion", "taylor", "--output", "plan.json")
    result = run(*asked)
    assert (result.exit_code, result.stderr) == (
        0,
        "user code prints at import\nwrote plan.json\n",
    )
    plan = Plan.load("plan.json")
    assert result.stdout == f"{plan}\n"
    assert {choice.group: len(choice.remove) for choice in plan.choices} == {
        "first": 4,
        "second": 3,
    }
    assert Plan.from_json(done(*asked, "--json")) == plan
    assert not list(here.glob(".*"))


def test_prune_writes_network_report_and_plan(here: Path) -> None:
    asked = on_images("prune", "--keep-macs", "0.5", "--criterion", "taylor", "--rounds", "2")
    files = ["--output", "s.safetensors", "--report", "r.html", "--plan", "p.json"]
    report = json.loads(done(*asked, *files, "--test-data", "folder", "--json"))
    assert report["rounds"] == 2
    assert report["images_from"] == "test images"
    assert report["macs"][1] <= 0.5 * report["macs"][0]
    small = load_pruned(user_network, "s.safetensors")
    assert sum(p.numel() for p in small.parameters()) == report["parameters"][1]
    assert (here / "r.html").read_text().startswith("<!")
    assert Plan.load("p.json").macs_after == report["macs"][1]
    page = (here / "r.html").read_text()
    assert "<svg" in page
    assert "asked keep_macs=0.5" in page
    limits = ["--ignore", "first", "--round-to", "2", "--keep-macs", "0.8"]
    text = done(*asked, "--no-recalibrate", *limits)
    assert "not pruned: first: ignored, as asked" in text
    single = ["--ratios", "first=0.5", "--min-channels", "4", "--compensate"]
    own = on_images("prune", "--criterion", "taylor", *single, "--max-loss-change", "99", "--json")
    report = json.loads(done(*own))
    assert (report["rounds"], report["goal"]["target"]) == (2, "ratios")
    assert [(row["group"], row["channels_after"]) for row in report["rows"]] == [("first", 4)]
    assert not list(here.glob(".*"))


def test_record_fit_and_prune_with_the_new_selector(here: Path) -> None:
    text = done(*on_images("record", "--network", "a", "--output", "records", "--family", "f"))
    assert text.startswith("records/a: ")
    arguments = ["--data", "images.parquet", "--batch-size", "16", "--network", "b"]
    found = json.loads(
        done("record", "--model", "user_code:other", *arguments, "--output", "records", "--json")
    )
    assert (found["network"], found["groups"], found["images"]) == ("b", 2, 16)
    assert found["states"] == 3
    asked = ["fit", "--records", "records", "--output", "own"]
    text = done(*asked)
    assert "of 2 networks" in text
    assert_refused("own holds a selector; give --overwrite", *asked)
    before = (here / "own" / "selector.json").read_bytes()
    learnt = json.loads(done(*asked, "--overwrite", "--json"))
    assert learnt["networks"] == ["a", "b"]
    assert f"single best: {learnt['single_best']}\n" in text
    assert (here / "own" / "selector.json").read_bytes() == before
    text = done(*on_images("prune", "--ratio", "0.3", "--selector", "own", "--rounds", "1"))
    assert text.startswith("criterion selector, 1 rounds")
    verified = done(*on_images("choose", "--ratio", "0.3", "--selector", "own", "--verify", "all"))
    assert "oracle images 0" not in verified
    assert_refused(
        "does nothing with --criterion l1",
        *on_images("choose", "--ratio", "0.3", "--selector", "own", "--criterion", "l1"),
    )
    assert_refused(
        "records/a exists", *on_images("record", "--network", "a", "--output", "records")
    )
    (here / "full").mkdir()
    (here / "full" / "letter.txt").write_text("keep me")
    assert_refused(
        "full is not empty and holds no selector",
        *["fit", "--records", "records", "--output", "full", "--overwrite"],
    )


def test_explain_tells_of_one_group_or_all(here: Path) -> None:
    asked = on_images("explain", "--ratio", "0.3")
    found = json.loads(done(*asked, "--json"))
    assert list(found) == ["first", "second"]
    one = json.loads(done(*asked, "--group", "second", "--json"))
    assert one == {"second": found["second"]}
    text = done(*asked)
    for name, why in found.items():
        assert f"{name}: {why['count']} of {why['channels']} channels go; trusted: " in text
        assert f"trusted: {why['trusted']}; runner-up: {why['runner_up']}" in text
        assert sum(reason["weight"] for reason in why["reasons"]) == pytest.approx(
            why["gain"], abs=1e-6
        ) or (why["fell_back"] or why["rival"] != why["single_best"])
    assert_refused("nothing from a group 'secnd'; nearest: second", *asked, "--group", "secnd")
    assert_refused("ratio=3.0 must be a share", *on_images("explain", "--ratio", "3"))


def test_evaluate_and_fit_on_own_and_other_records(here: Path) -> None:
    made(["a", "b", "c", "z"], groups=2).save("own")
    made(["x", "y"], groups=2).save("others")
    made(["a", "y"], groups=2).save("mixed")
    fit = ["fit", "--records", "own", "--output"]
    done(*fit, "small")
    learnt = json.loads(done(*fit, "large", "--with", "others", "--weight", "2", "--json"))
    assert learnt["networks"] == ["a", "b", "c", "x", "y", "z"]
    assert (here / "small" / "damage.txt").read_bytes() != (here / "large/damage.txt").read_bytes()
    evaluate = ["evaluate", "--records", "own", "--selector", "small"]
    found = json.loads(done(*evaluate, "--json"))
    assert found["networks"] == found["known"] == ["a", "b", "c", "z"]
    assert len(found["rows"]) == 5
    text = done(*evaluate, "--with", "mixed", "--weight", "0.5")
    assert "left out of base, being your own networks: a" in text
    assert "no fair test: the given selector has learnt from a, b, c, z" in text
    for command in (evaluate, [*fit, "third"]):
        assert_refused("there are none; give --with", *command, "--weight", "2")
        options = ["--with", "others", "--weight", "0"]
        assert_refused("must be a finite number above 0", *command, *options)
        assert_refused("no records in absent", *command, "--with", "absent")
    assert_refused("network 'a' is in both sets", *fit, "third", "--with", "mixed")
    assert_refused("1 network of your own cannot say", "evaluate", "--records", "own/a")
    assert not (here / "third").exists()


def assert_refused(culprit: str, *arguments: str) -> None:
    result = run(*arguments)
    noise = "user code prints at import\n"
    stderr = result.stderr.removeprefix(noise)
    assert (result.exit_code, result.stdout) == (2, ""), result.exception
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert culprit in stderr


TAYLOR = ["--criterion", "taylor"]
BAD_INPUT: dict[str, tuple[str, list[str]]] = {
    "no module": ("No module named 'absent'", ["--model", "absent:factory"]),
    "no factory": ("no attribute 'absent'", ["--model", "user_code:absent"]),
    "no colon": ("must have the form package.module:factory", ["--model", "user_code"]),
    "syntax": ("cannot be imported: SyntaxError", ["--model", "syntax:factory"]),
    "fails": ("user_code:broken() failed: KeyError", ["--model", "user_code:broken"]),
    "not callable": ("is not a function but a int", ["--model", "user_code:number"]),
    "no network": ("must return a torch.nn.Module", ["--model", "user_code:text"]),
    "no weights": ("absent.safetensors cannot be read", ["--weights", "absent.safetensors"]),
    "no data": ("absent.parquet: no such file or folder", ["--data", "absent.parquet"]),
    "no Parquet": ("user_code.py is not a Parquet file", ["--data", "user_code.py"]),
    "torn": ("torn.parquet cannot be read", ["--data", "torn.parquet"]),
    "one-shot": ("can be read only once", ["--data", "user_code:one_shot"]),
    "not batches": ("a batch must be a pair", ["--data", "user_code:text"]),
    "no test data": ("--test-data absent: no such file", ["--test-data", "absent"]),
    "mean": ("--mean '0.5,x' is not a list of numbers", ["--mean", "0.5,x"]),
    "nan": ("--std 'nan' is not a list of numbers", ["--std", "nan"]),
    "planes": ("mean has 2 values but the images have 3", ["--mean", "0.5,0.5"]),
    "std": ("every value must be above 0", ["--std", "0"]),
    "two targets": ("give exactly one target", ["--keep-macs", "0.5"]),
    "share": ("ratio=1.5 must be a share", ["--ratio", "1.5"]),
    "criterion": ("unknown criterion 'magic'", ["--criterion", "magic"]),
    "verify": ("--verify 'many' must be", ["--verify", "many"]),
    "verify one": ("compares several metrics", ["--verify", "3"]),
    "selector": ("absent is not a saved selector", ["--criterion=selector", "--selector=absent"]),
    "ignore": ("ignore names 'absent'", ["--ignore", "absent"]),
    "empty name": ("--ignore 'a,,b' has an empty name", ["--ignore", "a,,b"]),
    "rounds": ("rounds=0 must be", ["--rounds", "0"]),
    "round to": ("round_to=0 must be", ["--round-to", "0"]),
    "max ratio": ("max_ratio=2.0 must be", ["--max-ratio", "2"]),
    "ratios": (
        "'frist', which is no group; did you mean first",
        ["--ratios=frist=.3"],
    ),
    "shares": ("--max-ratios 'first' must name shares", ["--max-ratios", "first"]),
    "max loss change": ("max_loss_change=-1.0 must be above 0", ["--max-loss-change", "-1"]),
    "two measures": ("exactly one target", ["--keep-latency", "0.5"]),
    "no folder": ("there is no folder absent", ["--output", "absent/small.safetensors"]),
    "a folder": ("folder is a folder; name a file", ["--report", "folder"]),
    "twice": ("is named for two outputs", ["--plan", "p.json", "--report", "p.json"]),
    "data as output": ("is read by this command", ["--plan", "images.parquet"]),
}


@pytest.mark.parametrize(("culprit", "arguments"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_a_users_fault_is_one_line(here: Path, culprit: str, arguments: list[str]) -> None:
    base = ["--model", "user_code:Tiny", "--data", "images.parquet", "--ratio", "0.5", *TAYLOR]
    before = sorted(here.iterdir())
    assert_refused(culprit, "prune", *base, *arguments)
    assert sorted(set(here.iterdir()) - {here / "__pycache__"}) == before


@pytest.mark.parametrize(
    ("culprit", "arguments"),
    [
        ("unknown metric 'magic'", on_images("score", "--metrics", "l1,magic")),
        ("--batch-size does nothing", on_images("score", data="user_code:batches")),
        (
            "--images does nothing to the batches of user_code:batches",
            on_images(
                *["prune", *TAYLOR, "--ratio", "0.5", "--test-data", "images.parquet"],
                *["--images", "9"],
                data="user_code:batches",
            ),
        ),
        ("give exactly one target", on_images("choose", *TAYLOR)),
        ("there is no folder absent", on_images("record", "--network=a", "--output=absent/r")),
        ("is a file; name a folder", on_images("record", "--network=a", "--output=user_code.py")),
        (
            "needs at least 3 batches",
            on_images("record", "--network=a", "--output=r", "--images=20"),
        ),
        ("no records in folder", ["fit", "--records", "folder", "--output", "own"]),
        ("there is no folder absent", ["fit", "--records", "folder", "--output", "absent/own"]),
    ],
)
def test_other_commands_refuse_likewise(here: Path, culprit: str, arguments: list[str]) -> None:
    assert_refused(culprit, *arguments)


@pytest.mark.parametrize("arguments", [["absent"], ["score"], ["fit", "--absent"]])
def test_usage_errors_exit_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")


def test_a_write_that_fails_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_bytes

    def fail(self: Path, content: bytes) -> None:
        write(self, content[: len(content) // 2])
        raise OSError("disk full")

    (here / "plan.json").write_text("old")
    monkeypatch.setattr(Path, "write_bytes", fail)
    asked = on_images("choose", "--ratio", "0.5", *TAYLOR, "--output", "plan.json")
    assert_refused("plan.json cannot be written: disk full", *asked)
    assert (here / "plan.json").read_text() == "old"
    assert not list(here.glob(".*"))


def test_the_process_prints_the_document_only(here: Path) -> None:
    asked = on_images("prune", "--ratio", "0.5", *TAYLOR, "--rounds", "1", "--json")
    result = subprocess.run(
        [sys.executable, "-c", "from selector.cli.app import main; main()", *asked],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0
    first, *warnings = result.stderr.splitlines()
    assert first == "user code prints at import"
    # The network is a random one, and there are few images.
    assert [line.startswith("warning: ") for line in warnings] == [True, True]
    assert "near chance" in warnings[0]
    assert [f"warning: {text}" for text in json.loads(result.stdout)["warnings"]] == warnings
    assert json.loads(result.stdout)["criterion"] == "taylor"
