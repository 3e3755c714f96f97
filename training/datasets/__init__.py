"""Named data sets, from the shared folder, a package, or a download."""
