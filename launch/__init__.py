"""The scripts people start: parse, call one function of jsae, say where the result is."""
