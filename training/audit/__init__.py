"""What the records hold, and what could be learnt from them."""
