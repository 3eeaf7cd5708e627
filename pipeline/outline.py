"""The truth of a clip drawn over its picture, for everything that people look at."""

import cv2
import numpy as np

from pipeline.batch import Truth

_GREEN, _BLACK = (94, 222, 74), (0, 0, 0)  # BGR, as OpenCV draws


def outline(shown: np.ndarray, truth: Truth | None) -> np.ndarray:
    """A BGR picture `(H, W, 3)` uint8 of any size with the boxes, or the edge of the mask, drawn into it."""
    if truth is None:
        return shown
    height, width = shown.shape[:2]
    for thickness, colour in ((4, _BLACK), (2, _GREEN)):
        if truth.boxes is not None:
            corners = np.clip(truth.boxes[:, :4], 0, 1) * (width, height, width, height)
            for x0, y0, x1, y1 in corners.round().astype(int).tolist():
                cv2.rectangle(shown, (x0, y0), (x1 - 1, y1 - 1), colour, thickness)
        elif truth.mask is not None:
            mask = (truth.mask > 127).astype(np.uint8)
            mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
            edge, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(shown, edge, -1, colour, thickness, cv2.LINE_AA)
    return shown
