"""What scoring, the oracle, the selector and pruning cost."""
