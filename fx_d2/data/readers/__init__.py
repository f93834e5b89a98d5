"""One module per layout as downloaded; each has ``read(request) -> Iterator[Record]``.

A reader turns the files of one published part into records and does nothing else: splits, caching,
registration and drawing are elsewhere. It reads tables by column name, names the file and row of
whatever is wrong, and never opens image pixels.
"""
