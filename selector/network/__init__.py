"""What can be cut from a network, how it is cut, and what is left."""
