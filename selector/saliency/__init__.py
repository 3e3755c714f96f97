"""Saliency metrics: which channels each would remove first."""
