"""How many of the networks that people bring can be pruned, and whether the cuts are exact."""
