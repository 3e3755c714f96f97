"""Sets of channels to remove, chosen together: what a ranking of single channels cannot say."""
