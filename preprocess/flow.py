"""Optical flow from a stored picture to the next one of its video, as two grey pictures of codes.

The next picture is the one that is shown after it, however long after: with a variable frame rate, motion is a picture
and not a second. The last picture of a video has none after it; it gets the motion that led to it.
"""

from typing import Any

import cv2
import numpy as np

FARNEBACK = {
    "pyr_scale": 0.5,
    "levels": 3,
    "winsize": 15,
    "iterations": 3,
    "poly_n": 5,
    "poly_sigma": 1.2,
    "flags": 0,
}
"""The parameters that Hear the Flow publishes, which SIRA-SSL is trained with."""
PX_PER_CODE = 0.25
JPEG_QUALITY = 95  # what OpenCV writes by default, and so the published pictures


def flow_between(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """`(H, W, 2)` float32: how many pixels the points of `first` move to the right and down until `second`.

    Args: two pictures, (H, W, 3) uint8 BGR.
    """
    grey = [cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY) for picture in (first, second)]
    return cv2.calcOpticalFlowFarneback(*grey, None, **FARNEBACK)  # type: ignore[call-overload]


def coded(flow: np.ndarray, encoding: str) -> tuple[bytes, bytes]:
    """Flow as grey JPEGs, right and down: the codes of `description`."""
    codes = 128 + flow / PX_PER_CODE if encoding == "signed" else flow
    codes = codes.round().clip(0, 255).astype(np.uint8)
    return grey_jpeg(codes[..., 0]), grey_jpeg(codes[..., 1])


def grey_jpeg(codes: np.ndarray) -> bytes:
    """`(H, W)` uint8 as a grey baseline JPEG."""
    written, data = cv2.imencode(".jpg", codes, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert written
    return data.tobytes()


def description(encoding: str) -> dict[str, Any]:
    """What a store's manifest says about codes: signed: 128 + px / px_per_code; published: px, and 0 for motion to the
    left or up. Pixels are those of the stored picture.
    """
    scale = {"px_per_code": PX_PER_CODE} if encoding == "signed" else {}
    return {"encoding": encoding, **scale, "farneback": FARNEBACK, "jpeg_quality": JPEG_QUALITY}
