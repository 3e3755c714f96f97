"""The pages of the site: every code block runs, every page is listed, nothing is out of date."""

import ast
import json
import re
import shutil
import sys
import tomllib
from pathlib import Path

import pytest

from selector.saliency.registry import METRICS
from tests.pages import ROOT, blocks, done, run_python, script_of, with_command

PAGES = sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))
CODE = [page for page in PAGES if blocks(page, "python", "bash") and "own-zoo" not in page]
FAST = {"docs/faq.md": 1, "docs/own-metric.md": 3}
"""Pages that are run at once, and how many of their first blocks; the slow tests run all."""
NEEDED = {
    "docs/deploying.md": ["onnx", "onnxscript", "onnxruntime"],
    "docs/trainers.md": ["lightning", "accelerate"],
    "docs/many-machines.md": ["distributed", "ray"],
}
"""What a page needs beyond the library and its tests."""
LARGEST = 200_000
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


@pytest.mark.parametrize("page", FAST)
def test_the_first_code_of_a_page_runs(page: str, tmp_path: Path) -> None:
    run_python(with_command(tmp_path), "\n".join(blocks(page, "python")[: FAST[page]]))


@pytest.mark.slow
@needs_bash
@pytest.mark.parametrize("page", CODE)
def test_the_code_of_a_page_runs(page: str, tmp_path: Path) -> None:
    for module in NEEDED.get(page, []):
        pytest.importorskip(module, reason=f"{page} shows how to use {module}")
    run_python(with_command(tmp_path), script_of(page))
    written = {file.name for file in tmp_path.iterdir()}
    for name in re.findall(r'"([\w-]+\.(?:safetensors|html|onnx|pt2))"', script_of(page)):
        assert name in written, name


@pytest.mark.parametrize("page", ["README.md", *PAGES])
def test_code_is_code_of_a_language_that_is_run(page: str) -> None:
    for code in blocks(page, "python"):
        ast.parse(code)
    text = (ROOT / page).read_text(encoding="utf-8")
    languages = set(re.findall(r"^```(\w+)$", text, re.MULTILINE))
    assert languages <= {"python", "bash", "text", "bibtex"}, languages
    assert text.count("```") % 2 == 0


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"([\w-]+\.md)$", text[text.index("\nnav:") :], re.MULTILINE)
    assert sorted(f"docs/{name}" for name in listed) == PAGES


def test_every_public_name_is_in_the_reference() -> None:
    import selector

    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: selector\.(\w+)$", text, re.MULTILINE)) == sorted(
        selector.__all__
    )


def test_pictures_are_small_and_used() -> None:
    shown = "".join((ROOT / page).read_text(encoding="utf-8") for page in ["README.md", *PAGES])
    for picture in (ROOT / "docs" / "pictures").iterdir():
        assert picture.stat().st_size < LARGEST, picture.name
        assert picture.name in shown, picture.name


def test_the_citation_is_of_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for page in ("CITATION.cff", "docs/citation.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert project["version"] in text, page
        assert project["license"] in text, page
        assert "2004.03376" in text, page


def test_what_is_said_of_single_metrics_is_so() -> None:
    """The bullets of docs/which-metric.md, checked against the result file."""
    path = ROOT / "training" / "benchmarks" / "results" / "which_metric.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "which-metric.md").read_text(encoding="utf-8")
    assert f"right in {100 * found['summary']['best_is_right']:.0f} % of the decisions" in page
    assert found["summary"]["of_these_beyond_two_errors"] == 0
    assert f"These are {found['summary']['networks']:.0f} small networks" in page
    for row in found["rows"]:
        regret = {arm: x for arm, x in row["regret"].items() if x is not None}
        assert min(regret, key=regret.__getitem__) == "reconstruction_fisher"
    everywhere = {arm: x for arm, x in found["rows"][0]["regret"].items() if x is not None}
    order = sorted(everywhere, key=everywhere.__getitem__)
    assert order[:3] == ["reconstruction_fisher", "reconstruction", "column_subset"]
    rankings = [arm for arm in order if arm in METRICS]
    assert rankings[:2] == ["rank_mean", "wanda"]
    assert {"joint_half", "joint_1"} <= set(order[-4:])


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")
    built = tmp_path / "site"
    command = ["-m", "mkdocs", "build", "--strict", "--site-dir", str(built)]
    done(
        with_command(tmp_path), sys.executable, *command, "--config-file", str(ROOT / "mkdocs.yml")
    )
    for page in PAGES:
        assert (built / f"{Path(page).stem}.html").is_file(), page
    reference = (built / "api.html").read_text(encoding="utf-8")
    assert 'id="selector.prune"' in reference
    assert "keep_macs" in reference
    for text in (file.read_text(encoding="utf-8") for file in built.glob("*.html")):
        fetched = re.findall(r'(?:src|href)="(https?://[^"]+)"', text)
        assert not [link for link in fetched if link.endswith((".css", ".js", ".woff2"))]
