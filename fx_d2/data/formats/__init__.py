"""One module per family of image file; :mod:`fx_d2.data.images` is the front door."""
