"""Photos in sRGB: the ICC profile that a photo carries is applied where it changes a colour; elsewhere it is free.

A profile that is damaged, too large or of another kind of picture is ignored, as browsers do.
"""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

MOST_PROFILE_BYTES = 4 << 20
MOST_KEPT = 32  # conversions that are remembered
UNSEEN = 2  # a profile that moves no colour by more levels than this is sRGB
_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}
_SRGB = ImageCms.createProfile("sRGB")
_STEPS = np.linspace(0, 255, 9).round().astype(np.uint8)


def in_srgb(picture: Image.Image, profile: bytes) -> Image.Image | None:
    """A picture of mode RGB, L or CMYK as sRGB; None where `profile` changes nothing or cannot be used for it."""
    if len(profile) > MOST_PROFILE_BYTES:
        return None
    conversion = _conversion(profile, picture.mode)
    return None if conversion is None else conversion.apply(picture)


@lru_cache(MOST_KEPT)
def _conversion(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From `profile` to sRGB, relative to its white and black; None for sRGB itself, known by what it does."""
    try:
        opened = ImageCms.core.profile_frombytes(profile)
        if opened.xcolor_space.strip() != _SPACES[mode]:
            return None
        intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
        conversion = ImageCms.buildTransform(ImageCms.ImageCmsProfile(opened), _SRGB, mode, "RGB", intent, flags)
        return None if mode == "RGB" and _changes_nothing(conversion) else conversion
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _changes_nothing(conversion: ImageCms.ImageCmsTransform) -> bool:
    colours = np.stack(np.meshgrid(_STEPS, _STEPS, _STEPS), axis=-1).reshape(1, -1, 3)
    seen = np.asarray(conversion.apply(Image.fromarray(colours)))
    return bool(np.abs(seen.astype(int) - colours).max() <= UNSEEN)
