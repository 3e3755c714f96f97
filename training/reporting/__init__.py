"""Result files, finished runs, and the parts of the documents that come from them."""
