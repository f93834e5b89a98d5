"""DADAM: lesions cut out of sources with boxes, pasted where they can lie, with exact truth.

Read in this order: ``settings`` (every choice), ``bank_build`` and ``bank`` (where lesions come
from), ``place`` (geometry and grey levels of one paste), ``mixer`` (an image and its truth),
``plan``, ``build`` and ``audit`` (a written dataset), ``online`` (the same within the mapper).
"""
