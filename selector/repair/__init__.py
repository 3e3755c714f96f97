"""How what is left of a network is repaired: refitted in closed form, then distilled."""
