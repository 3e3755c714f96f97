"""EfficientNet-Lite1 on ImageNet: what pruning without training costs a network of today's kind."""
