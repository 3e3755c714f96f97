"""Training and recording many networks, on many processes or machines, resumable."""
