"""The errors of a classifier: found, counted, explained with class activation maps, and drawn."""
