"""Benchmarks, one file for each question; each prints a table and writes JSON to `results/`."""
