"""What is worth measuring: forecasts of each kind of label, noise and headroom."""
