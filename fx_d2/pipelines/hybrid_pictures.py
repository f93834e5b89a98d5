"""What each stage of the hybrid pipeline did to a film, as small pictures."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from fx_d2.data.draw import BACKGROUND, TEXT, Picture, display, fitted, font_of, font_px
from fx_d2.data.transforms import FxResizeTransform

from .stages import Crop, Film, Grey, HeatMap, LungMask, Mask

LUNG_COLOUR = (64, 210, 230)
BOX_COLOUR = (200, 205, 212)
LESION_COLOUR = (255, 255, 255)
_DIM = 0.7  # what is left of the brightness outside the lungs
_HEAT = 0.62  # opacity of the map at its maximum
_COLOURS = cv2.COLORMAP_TURBO


class FilmPictures:
    """Draws one film at a bounded size, so that what is kept of it is small.

    Args:
        film: whose pixels are stretched for looking.
        size_px: longer side; a smaller film is not enlarged beyond twice its size.
    """

    def __init__(self, film: Film, size_px: int) -> None:
        height, width = film.size
        scale = min(size_px / max(height, width), 2.0)
        self.shape = (max(1, round(height * scale)), max(1, round(width * scale)))
        self._grey = display(_resized(film.loaded().pixels, self.shape))
        self._line = max(1, round(max(self.shape) / 300))

    def film(self) -> Picture:
        """The film alone."""
        return _bytes(_coloured(self._grey))

    def lungs(self, lungs: LungMask, crop: Crop | None = None) -> Picture:
        """The film, darker outside the lungs, which are outlined, and the box that is cut out."""
        cover = _resized(lungs.mask.astype(np.float32), self.shape)
        canvas = _coloured(self._grey) * (_DIM + (1 - _DIM) * cover)[..., None]
        picture = _bytes(canvas)
        self._outline(picture, lungs.mask, LUNG_COLOUR)
        self._box(picture, crop)
        return picture

    def heat(
        self,
        heat: HeatMap,
        lungs: LungMask | None,
        lesions: Mapping[str, Mask] | None = None,
        crop: Crop | None = None,
    ) -> Picture:
        """The film under its heat map; lungs, true lesions and what was shown are outlined.

        Without the box the straight edge where a map ends would look like a finding.

        Where the map is 0 the film is left as it is: a tint everywhere would hide how little of it
        a classifier looks at.
        """
        values = _resized(heat.scaled(), self.shape)
        picture = _heated(_coloured(self._grey), values)
        if lungs is not None and lungs.mask.any():
            self._outline(picture, lungs.mask, LUNG_COLOUR)
        for region in (lesions or {}).values():
            self._outline(picture, region, LESION_COLOUR, dark=True)
        self._box(picture, crop)
        return picture

    def crop(self, crop: Crop) -> Picture:
        """What the classifier is shown, fitted into the size of the film's pictures."""
        image = np.asarray(crop.shown.image, dtype=np.float32)
        scale = min(self.shape[0] / image.shape[0], self.shape[1] / image.shape[1])
        size = (max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale)))
        canvas = np.zeros(self.shape, dtype=np.float32)
        top, left = (self.shape[0] - size[0]) // 2, (self.shape[1] - size[1]) // 2
        canvas[top : top + size[0], left : left + size[1]] = _resized(image, size)
        return _bytes(_coloured(canvas))

    def _box(self, picture: Picture, crop: Crop | None) -> None:
        if crop is None or crop.seen().all():
            return
        scale = [self.shape[1] / crop.frame[1], self.shape[0] / crop.frame[0]] * 2
        x0, y0, x1, y1 = (round(v * s) for v, s in zip(crop.shown.box, scale, strict=True))
        cv2.rectangle(picture, (x0, y0), (x1 - 1, y1 - 1), BOX_COLOUR, 1)

    def _outline(
        self, picture: Picture, mask: Mask, colour: tuple[int, int, int], *, dark: bool = False
    ) -> None:
        small = (_resized(mask.astype(np.float32), self.shape) >= 0.5).astype(np.uint8)
        lines = cv2.findContours(small, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
        if dark:  # a dark border keeps a light line visible on a bright map
            cv2.drawContours(picture, lines, -1, (0, 0, 0), self._line + 2, cv2.LINE_AA)
        cv2.drawContours(picture, lines, -1, colour, self._line, cv2.LINE_AA)


def titled(picture: Picture, text: str) -> Picture:
    """A picture below a line of text."""
    size = font_px(max(picture.shape[:2]))
    font, top = font_of(size), round(size * 1.6)
    canvas = Image.new("RGB", (picture.shape[1], picture.shape[0] + top), BACKGROUND)
    canvas.paste(Image.fromarray(picture), (0, top))
    pen = ImageDraw.Draw(canvas)
    pen.text((4, 2), fitted(pen, text, font, picture.shape[1] - 8), fill=TEXT, font=font)
    return np.asarray(canvas)


def colour_bar(width_px: int = 180, height_px: int = 12) -> Picture:
    """The colours of a heat map from 0 at the left to its maximum at the right, on grey."""
    values = np.tile(np.linspace(0, 1, width_px, dtype=np.float32), (height_px, 1))
    return _heated(np.float32(110), values)


def _heated(below: npt.NDArray[np.float32] | np.float32, values: Grey) -> Picture:
    """Values (H, W) in [0, 1] as colours over what lies below, which 0 leaves as it is."""
    values = np.clip(values, 0, 1)
    levels = np.rint(values * 255).astype(np.uint8)
    colours = cv2.applyColorMap(levels, _COLOURS)[..., ::-1].astype(np.float32)
    alpha = (values**0.75 * _HEAT)[..., None]
    return _bytes(below * (1 - alpha) + colours * alpha)


def _resized(values: Grey, shape: tuple[int, int]) -> Grey:
    return FxResizeTransform(*values.shape, *shape).apply_image(values)


def _coloured(grey: Grey) -> npt.NDArray[np.float32]:
    return np.repeat(np.clip(grey, 0, 1)[..., None] * np.float32(255), 3, axis=2)


def _bytes(canvas: npt.NDArray[np.floating]) -> Picture:
    return np.ascontiguousarray(np.clip(canvas, 0, 255).astype(np.uint8))
