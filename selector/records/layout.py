"""What lies in the folder of a network's records: files, columns of names, versions of the schema.

Whatever is changed here changes what files of earlier versions read as.
"""

SCHEMA_VERSION = 4
"""Of what is written."""
READABLE = ("1", "2", "3", "4")
"""Version 1 had the unpruned state and plain removal only, version 2 no pairs of channels, version
3 plain removal only and no sets; what is missing reads as not measured."""
GROUPS_FILE = "groups.parquet"
CANDIDATES_FILE = "candidates.parquet"
FILES = (GROUPS_FILE, CANDIDATES_FILE)
NAMES = ["network", "context", "group", "arm"]
"""Columns that hold few different texts; a group has no arm."""
