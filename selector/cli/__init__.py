"""The command `saliency-selector`."""
