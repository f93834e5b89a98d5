"""Several steps as one, each of which can be called alone: lung masks, committees, the hybrid."""
