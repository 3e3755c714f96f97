"""What goes, by which metric, and what it is expected to cost."""
