"""An own index mapping: every channel is a label that is followed through a forward pass."""
