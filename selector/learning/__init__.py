"""The selector: which metric to trust where, learnt from records."""
