"""The experiment of arXiv 2004.03376 on its own networks."""
