"""How a network gets smaller: rounds, plans applied, the report."""
