"""Several trained models as one procedure: each stage can be called alone."""
