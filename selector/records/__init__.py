"""Decisions and measurements as data, and their files."""
