"""The report as one HTML file: its sentences, tables and drawings."""
