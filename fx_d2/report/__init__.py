"""A run as a page: curves, results, what was forgotten, predictions beside truth."""
