"""What the HTML pages share: one look for light and dark screens, and pictures inside the file."""

from __future__ import annotations

import base64
import html

import cv2
import numpy as np

from .draw import Picture

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #1c2128; --dim: #444c56;
        --line: #e3e6ea; --edge: #8a94a3; --good: #1f7a4d; --bad: #b3261e; --warn: #a87300 }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171c; --card: #1d2229; --text: #e4e7eb; --dim: #a6afba; --line: #333a44;
          --edge: #6b7684; --good: #2b8a5b; --bad: #c8443b; --warn: #b98410 } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1180px; padding: 24px;
       background: var(--page); color: var(--text) }
h1 { font-size: 24px; margin: 0 0 4px } h2 { font-size: 18px; margin: 0 }
.verdict { padding: 12px 16px; border-radius: 8px; color: #fff; margin: 12px 0 }
.ok { background: var(--good) } .bad { background: var(--bad) }
table { border-collapse: collapse; width: 100%; font-size: 13px }
td, th { text-align: left; padding: 4px 8px; border-bottom: 1px solid var(--line);
         vertical-align: top }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
section { background: var(--card); border-radius: 8px; padding: 14px 16px; margin: 14px 0;
          border-left: 6px solid var(--edge); overflow-x: auto }
.what { margin: 4px 0; color: var(--dim) }
figure { margin: 0 } figcaption { font-size: 12px; overflow-wrap: anywhere }
img { display: block; border-radius: 4px }
details summary { cursor: pointer; color: var(--dim) }
@media (max-width: 600px) { body { padding: 10px } section { padding: 10px } }
"""


def document(title: str, body: str, style: str = "") -> str:
    """A page in one file; nothing in it is loaded from elsewhere.

    Args:
        title: plain text.
        body: HTML.
        style: CSS beside :data:`STYLE`.
    """
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'>"
        f"<title>{html.escape(title)}</title><style>{STYLE}{style}</style>{body}</html>\n"
    )


def image_tag(data: bytes, kind: str, alt: str = "") -> str:
    """An ``<img>`` that holds its file.

    Args:
        data: of the file.
        kind: ``png`` or ``jpeg``.
        alt: what it shows, as plain text.
    """
    packed = base64.b64encode(data).decode("ascii")
    return f"<img alt='{html.escape(alt)}' src='data:image/{kind};base64,{packed}'>"


def picture_tag(picture: Picture, alt: str = "") -> str:
    """An RGB picture as an ``<img>`` of a JPEG; empty where it cannot be encoded."""
    ok, data = cv2.imencode(".jpg", np.ascontiguousarray(picture[..., ::-1]))
    return image_tag(data.tobytes(), "jpeg", alt) if ok else ""
