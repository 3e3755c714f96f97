"""The myopic composition of arXiv 2004.03376: one channel at a time, by the oracle."""
