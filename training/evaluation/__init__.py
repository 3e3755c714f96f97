"""Judging selectors on networks, families and data sets that they have not seen."""
