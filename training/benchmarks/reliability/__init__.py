"""Hostile files, kills, random networks and load: what falls over, counted."""
