"""What several benchmarks share: networks, images, curves, accuracy."""
