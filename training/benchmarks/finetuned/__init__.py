"""What is left of a head start once pruned networks are trained, and what training a repair saves.

Source:
    Liu et al., arXiv 1810.05270 (training the small architecture from scratch as a control).
"""
