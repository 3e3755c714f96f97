"""Whole networks pruned by every method: accuracy over multiply-accumulates."""
