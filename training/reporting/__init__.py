"""Result files, finished runs, and the parts of the README that come from them."""
