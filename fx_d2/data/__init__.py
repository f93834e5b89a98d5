"""Sources, records, reading and mapping of chest radiographs.

Import what you need from the modules; ``fx_d2`` itself imports :mod:`fx_d2.data.builtin`, which
registers the datasets of every source.
"""
