"""Whole prunings of networks whose family was left out: what they lose, and what widths are worth.

`runs.py` prunes, `report.py` learns the factors between predicted sums and real losses, and judges.
"""
