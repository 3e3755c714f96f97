"""What repair and unlabelled distillation are worth on networks that others trained, and cost."""
