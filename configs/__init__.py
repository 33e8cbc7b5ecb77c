"""Experiments: one file each, `get_config()`; every default of the project lives here."""
