"""The zoo: blocks, families, how networks are drawn and trained; networks that others trained."""
