"""One pass over the data: what metrics may know of each group."""
