"""What one source does to a detector signal: window, curve, sharpening, noise, borders, text.

A look never moves a pixel, so the truth of a radiograph stays exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from fx_d2.phantom.canvas import blur


@dataclass(frozen=True)
class Look:
    """Per-source appearance; ranges are (low, high) and drawn uniformly per image.

    Attributes:
        bits: Stored grey depth.
        size_px: Range of the native (height, width) short side.
        aspect: Range of height over width.
        views: Share of each projection.
        female: Share of women.
        age: Mean and standard deviation in years.
        window: Percentiles of the signal inside the body mapped to black and white.
        gamma: Exponent of the display curve; below 1 brightens the lungs.
        contrast: Steepness of the sigmoid part of the curve, 0 for none.
        detail: Strength of the vendor's edge enhancement.
        equalise: Strength of large-area flattening, as multi-frequency processing does.
        noise: Relative quantum noise.
        blur_cm: Unsharpness of focus and detector, in thousandths of the picture width.
        vignette: Darkening towards the corners.
        border: Chance of a collimation border.
        border_white: Chance that the border is white instead of black.
        marker: Chance of a side marker.
        text: Chance of a burned-in text line.
        black: Level of unexposed air after processing.
        white: Level of the densest parts.
    """

    bits: int
    size_px: tuple[int, int]
    aspect: tuple[float, float]
    views: tuple[tuple[str, float], ...]
    female: float = 0.46
    age: tuple[float, float] = (54.0, 17.0)
    window: tuple[float, float] = (1.0, 99.0)
    gamma: tuple[float, float] = (0.8, 1.05)
    contrast: tuple[float, float] = (1.5, 3.0)
    detail: tuple[float, float] = (0.2, 0.6)
    equalise: tuple[float, float] = (0.0, 0.25)
    noise: tuple[float, float] = (0.4, 1.0)
    blur_cm: tuple[float, float] = (0.4, 1.0)
    vignette: tuple[float, float] = (0.0, 0.08)
    border: float = 0.25
    border_white: float = 0.1
    marker: float = 0.7
    text: float = 0.15
    black: tuple[float, float] = (0.0, 0.04)
    white: tuple[float, float] = (0.92, 1.0)


_PA = (("PA", 1.0),)
_PA_AP = (("PA", 0.6), ("AP", 0.4))
_SQUARE = (1.0, 1.0)

LOOKS: dict[str, Look] = {
    "chexpert": Look(
        8, (320, 390), (0.82, 1.2), (("AP", 0.72), ("PA", 0.14), ("LL", 0.14)), female=0.41,
        age=(60.0, 18.0), contrast=(2.5, 4.0), equalise=(0.35, 0.6), detail=(0.3, 0.7),
        border=0.4, border_white=0.3, text=0.5, marker=0.8,
    ),
    "nih14": Look(
        8, (1024, 1024), _SQUARE, _PA_AP, female=0.435, age=(47.0, 17.0),
        gamma=(0.6, 0.95), contrast=(0.8, 2.4), white=(0.8, 1.0), border=0.35,
    ),
    "vindr_cxr": Look(
        14, (2000, 2900), (0.98, 1.2), (("PA", 1.0),), female=0.47, age=(48.0, 18.0),
        gamma=(0.9, 1.2), contrast=(1.8, 3.2), detail=(0.4, 0.9), noise=(0.3, 0.8), text=0.1,
    ),
    "shenzhen": Look(
        8, (2600, 3000), (0.95, 1.1), (("PA", 0.9), ("AP", 0.1)), female=0.33, age=(35.0, 15.0),
        gamma=(1.0, 1.3), contrast=(3.0, 4.6), detail=(0.2, 0.5), noise=(0.3, 0.6), marker=0.9,
    ),
    "mimic_cxr": Look(
        8, (2300, 3050), (0.8, 1.22), (("AP", 0.6), ("PA", 0.4)), female=0.48, age=(61.0, 18.0),
        contrast=(2.2, 3.6), equalise=(0.15, 0.4), detail=(0.3, 0.7), text=0.35, border=0.45,
    ),
    "tbx11k": Look(
        8, (512, 512), _SQUARE, _PA, female=0.45, age=(40.0, 16.0),
        gamma=(1.1, 1.5), contrast=(2.4, 4.2), detail=(0.5, 1.0), noise=(0.3, 0.7), text=0.0,
    ),
    "node21": Look(
        16, (1024, 1024), _SQUARE, _PA, gamma=(0.9, 1.1), contrast=(1.0, 1.8), equalise=(0.5, 0.8),
        detail=(0.2, 0.5), border=0.9, marker=0.2, text=0.0,
    ),
    "candid_ptx": Look(
        8, (1024, 1024), _SQUARE, (("PA", 0.7), ("AP", 0.3)), gamma=(0.85, 1.15),
        contrast=(1.6, 3.4), detail=(0.5, 1.0), marker=0.9, text=0.3,
    ),
    "rsna": Look(
        8, (1024, 1024), _SQUARE, (("PA", 0.54), ("AP", 0.46)), female=0.43, age=(47.0, 17.0),
        gamma=(0.65, 1.0), contrast=(1.0, 2.6), white=(0.85, 1.0), border=0.3,
    ),
    "chestx_det": Look(
        8, (1024, 1024), _SQUARE, _PA_AP, age=(49.0, 17.0), gamma=(0.65, 1.0),
        contrast=(1.0, 2.6), white=(0.85, 1.0), border=0.3,
    ),
    "siim_acr": Look(
        8, (1024, 1024), _SQUARE, (("PA", 0.62), ("AP", 0.38)), gamma=(0.7, 1.05),
        contrast=(1.2, 2.8), white=(0.85, 1.0), border=0.3,
    ),
    "vindr_ribcxr": Look(
        8, (2300, 2900), (1.1, 1.3), _PA, gamma=(0.9, 1.15), contrast=(2.0, 3.2), detail=(0.5, 1.0),
    ),
    "montgomery": Look(
        12, (4020, 4020), (0.82, 1.22), _PA, female=0.54, age=(45.0, 19.0), gamma=(1.1, 1.4),
        contrast=(2.0, 3.6), noise=(0.6, 1.2), border=0.8, marker=0.9, text=0.0,
    ),
    "jsrt": Look(
        12, (2048, 2048), _SQUARE, _PA, female=0.52, age=(58.0, 14.0), gamma=(0.9, 1.1),
        contrast=(0.6, 1.4), detail=(0.0, 0.1), noise=(0.8, 1.5), blur_cm=(0.8, 1.4), text=0.0,
        marker=0.3, border=0.6,
    ),
    "covid_radiography": Look(
        8, (299, 299), _SQUARE, _PA_AP, gamma=(0.75, 1.2), contrast=(1.0, 4.0), detail=(0.0, 0.9),
        blur_cm=(0.6, 2.0), text=0.35, white=(0.8, 1.0),
    ),
    "covid_qu_ex": Look(
        8, (256, 256), _SQUARE, _PA_AP, gamma=(0.75, 1.2), contrast=(1.0, 4.0), detail=(0.0, 0.9),
        blur_cm=(0.8, 2.2), text=0.3, white=(0.8, 1.0),
    ),
    "covid19_seg": Look(
        8, (500, 2000), (0.8, 1.15), (("PA", 0.5), ("AP", 0.5)), age=(55.0, 15.0),
        gamma=(0.7, 1.4), contrast=(0.8, 4.5), detail=(0.0, 1.2), text=0.6, marker=0.9,
        blur_cm=(0.3, 2.0), border=0.5, border_white=0.2, white=(0.8, 1.0),
    ),
}  # fmt: skip
for _alias, _source in {
    "vindr_local": "vindr_cxr",
    "vindr_global": "vindr_cxr",
    "chexmask_vindr": "vindr_cxr",
    "cxr_lt": "mimic_cxr",
    "covid_radiography_3": "covid_radiography",
}.items():
    LOOKS[_alias] = LOOKS[_source]


def _draw(rng: np.random.Generator, span: tuple[float, float]) -> float:
    return float(span[0] + (span[1] - span[0]) * rng.random())


def apply_look(
    image: np.ndarray, look: Look, rng: np.random.Generator, view: str | None = None
) -> np.ndarray:
    """Turn an ideal signal (H, W) into a picture of a source; both float32 in [0, 1].

    The view only chooses what a burned-in text may say; without it the text is neutral.
    """
    width = image.shape[1]
    signal = np.asarray(image, dtype=np.float32)
    signal = blur(signal, _draw(rng, look.blur_cm) * width * 1e-3)
    signal = _quantum_noise(signal, _draw(rng, look.noise), rng)
    signal = _flatten(signal, _draw(rng, look.equalise), _draw(rng, look.detail))
    low, high = _window(signal, look.window)
    grey = np.clip((signal - low) / max(high - low, 1e-3), 0.0, 1.0)
    grey = _curve(grey, _draw(rng, look.gamma), _draw(rng, look.contrast))
    grey = _vignette(grey, _draw(rng, look.vignette))
    black, white = _draw(rng, look.black), _draw(rng, look.white)
    grey = black + (white - black) * grey
    grey = _border(grey, look, rng)
    grey = _markings(grey, look, rng, view)
    return np.clip(grey, 0.0, 1.0).astype(np.float32)


def _quantum_noise(signal: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    """Fewer photons behind dense tissue: noise grows with the exponential of the signal."""
    grain = rng.standard_normal(signal.shape, dtype=np.float32)
    if signal.shape[1] > 700:  # grain is correlated over neighbouring pixels of a fine detector
        grain = cv2.GaussianBlur(grain, (0, 0), 0.55) * np.float32(1.7)
    # Averaging when an image is reduced removes noise in proportion to the pixel side.
    spread = 0.0027 * level * min(1.6, (signal.shape[1] / 1024.0) ** 0.5)
    return signal + np.float32(spread) * grain * np.exp(np.float32(1.4) * (signal - 0.3))


def _flatten(signal: np.ndarray, equalise: float, detail: float) -> np.ndarray:
    """Multi-frequency processing: lower the large-area contrast, raise the fine one."""
    width = signal.shape[1]
    out = signal
    if detail > 0.0:
        out = out + np.float32(0.8 * detail) * (signal - blur(signal, 0.012 * width))
        out = out + np.float32(0.5 * detail) * (signal - blur(signal, 0.003 * width))
    if equalise > 0.0:
        out = out - np.float32(0.6 * equalise) * (np.maximum(blur(signal, 0.10 * width), 0.4) - 0.5)
    return out


def _window(signal: np.ndarray, percentiles: tuple[float, float]) -> tuple[float, float]:
    """Levels of the exposed body, found as an automatic exposure control would."""
    height, width = signal.shape
    step = max(1, min(height, width) // 96)
    centre = signal[height // 10 : -height // 10 : step, width // 10 : -width // 10 : step]
    body = centre[centre > 0.12]
    if body.size < 16:
        return float(signal.min()), float(signal.max())
    low, high = np.percentile(body, percentiles)
    return float(low) - 0.10, float(high) + 0.01


def _curve(grey: np.ndarray, gamma: float, contrast: float) -> np.ndarray:
    """Gamma, then a sigmoid normalised to keep black and white."""
    steps = np.linspace(0.0, 1.0, 1025)
    curve = steps**gamma
    if contrast > 0.0:
        squash = 1.0 / (1.0 + np.exp(-contrast * (curve - 0.5)))
        curve = (squash - squash[0]) / (squash[-1] - squash[0])
    position = grey * np.float32(1024.0)
    index = np.minimum(position.astype(np.int32), 1023)
    table = curve.astype(np.float32)
    left = table[index]
    return left + (table[index + 1] - left) * (position - index)


def _vignette(grey: np.ndarray, amount: float) -> np.ndarray:
    rows = np.linspace(-1.0, 1.0, grey.shape[0], dtype=np.float32)[:, None]
    cols = np.linspace(-1.0, 1.0, grey.shape[1], dtype=np.float32)[None, :]
    return grey * (1.0 - np.float32(amount) * (rows * rows + cols * cols) * 0.5)


def _border(grey: np.ndarray, look: Look, rng: np.random.Generator) -> np.ndarray:
    """Collimator blades or film edge along some sides, at most 4 % of the picture."""
    chosen, white = rng.random(), rng.random()
    wide = rng.random(4) * (rng.random(4) < 0.6)
    if chosen >= look.border:
        return grey
    height, width = grey.shape
    level = np.float32(1.0 if white < look.border_white else 0.0)
    rows = np.arange(height, dtype=np.float32)[:, None]
    cols = np.arange(width, dtype=np.float32)[None, :]
    edge = 0.04 * np.array([height, height, width, width]) * wide
    soft = max(0.5, 0.002 * width)
    open_field = np.clip((rows - edge[0]) / soft, 0, 1) * np.clip(
        (height - 1 - rows - edge[1]) / soft, 0, 1
    )
    open_field = open_field * np.clip((cols - edge[2]) / soft, 0, 1)
    open_field = open_field * np.clip((width - 1 - cols - edge[3]) / soft, 0, 1)
    return grey * open_field + level * (1.0 - open_field)


_TEXTS = {
    "PA": ("PA", "PA ERECT", "ERECT", "STANDING"),
    "AP": ("AP", "PORTABLE", "SUPINE", "SITTING", "AP ERECT", "MOBILE"),
    "LL": ("LAT", "LATERAL"),
    None: ("CHEST", "ERECT"),
}


def _markings(
    grey: np.ndarray, look: Look, rng: np.random.Generator, view: str | None
) -> np.ndarray:
    """Side marker and text in the corners, as bright as lead."""
    height, width = grey.shape
    pick = rng.random(8)
    scale = min(height, width) / 512.0
    if pick[0] < look.marker:
        right = pick[1] < 0.25
        letter = "R" if right else "L"
        x = (0.05 + 0.05 * pick[2]) if right else (0.88 + 0.05 * pick[2])
        corner = (int(x * width), int((0.07 + 0.08 * pick[3]) * height))
        _write(grey, letter, corner, (0.7 + 0.5 * pick[4]) * scale, 0.97)
    if pick[5] < look.text:
        texts = _TEXTS.get(view, _TEXTS[None])
        text = texts[int(pick[6] * len(texts))]
        x = 0.03 if pick[7] < 0.5 else 0.74
        _write(grey, text, (int(x * width), int(0.045 * height)), 0.5 * scale, 0.95)
    return grey


def _write(
    grey: np.ndarray, text: str, corner: tuple[int, int], scale: float, level: float
) -> None:
    """Burn text into the picture in place, antialiased."""
    stamp = np.zeros(grey.shape, np.uint8)
    thickness = max(1, int(round(1.6 * scale)))
    cv2.putText(stamp, text, corner, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thickness, cv2.LINE_AA)
    cover = stamp.astype(np.float32) * np.float32(1.0 / 255.0)
    grey += cover * (np.float32(level) - grey)
