"""Several models, one after the other or together: committees, ensembles of masks, pipelines."""
