"""A network and data in, records out."""
