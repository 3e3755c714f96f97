"""How layers are coupled: the graph of channels, shared parameters, and the law that judges."""
