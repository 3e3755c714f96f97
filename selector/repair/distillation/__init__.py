"""Unlabelled distillation: a pruned network trained towards the unpruned one's outputs."""
