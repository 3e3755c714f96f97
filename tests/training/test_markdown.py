"""Tables of result files as text."""

import doctest

from training.reporting import markdown
from training.reporting.markdown import cell, markdown_table


def test_the_examples_hold() -> None:
    assert doctest.testmod(markdown).failed == 0
    assert doctest.testmod(markdown).attempted > 0


def test_a_table_has_a_cell_for_each_column() -> None:
    text = markdown_table(["one", "two", "three"], [["a", "b", "c"], ["d", "", "-"]])
    assert [line.count("|") for line in text.splitlines()] == [4] * 4


def test_whole_numbers_are_not_rounded() -> None:
    assert cell(123456, ".3g") == "123456"
    assert cell(123456.0, ".3g") == "1.23e+05"
    assert cell(0.1 + 0.2, "") == str(0.1 + 0.2)
