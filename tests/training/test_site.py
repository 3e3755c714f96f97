"""The site's hook: links out of the documents' folder lead to copies, all others stay."""

from pathlib import Path

import pytest

from training.reporting.site import ROOT, linked_files, turned

PAGE = ROOT / "docs" / "page.md"


@pytest.mark.parametrize(
    ("link", "there"),
    [
        ("[card](../data/README.md)", "[card](repository/data/README.md)"),
        ("[card](../data/README.md#columns)", "[card](repository/data/README.md#columns)"),
        ("![plot](../training/__main__.py)", "![plot](repository/training/__main__.py)"),
        ("[method](method.md)", None),
        ("[gone](../data/nothing.md)", None),
        ("[far](https://arxiv.org/abs/2004.03376)", None),
        ("[back](../docs/method.md)", None),
    ],
)
def test_links_are_turned_where_they_leave(link: str, there: str | None) -> None:
    assert turned(f"See {link}, please.", PAGE) == f"See {there or link}, please."
    assert bool(linked_files(link, PAGE)) == (there is not None)


def test_files_are_named_from_the_repository() -> None:
    text = "[a](../README.md) and [b](../training/campaign/campaign.py)"
    assert linked_files(text, PAGE) == [Path("README.md"), Path("training/campaign/campaign.py")]
