"""The loops of resizing as OpenCV does: interpolation within each row, then between two rows."""

from __future__ import annotations

import numpy as np

from codetr.compiled import compiled


@compiled()
def interpolate(image, channels, rows, columns, out):  # type: ignore[no-untyped-def]
    """Fill ``out`` (h, w * C) uint8 from ``image`` (H, W * C) uint8.

    ``rows`` (4, h) and ``columns`` (4, w) int32: the low and the high neighbour of each, and the
    weights of both out of 2048.
    """
    across = np.empty((2, out.shape[1]), np.int32)
    held = np.full(2, -1)  # which rows of the image are in ``across``
    for i in range(len(out)):
        low, high = rows[0, i], rows[1, i]
        if held[1] == low and held[0] != low:  # the next pair begins where the last one ended
            across[0], held[0] = across[1], low
        if held[0] != low:
            _across(image[low], channels, columns, across[0])
            held[0] = low
        if held[1] != high:
            _across(image[high], channels, columns, across[1])
            held[1] = high
        _between(across[0], across[1], rows[2, i], rows[3, i], out[i])


@compiled()
def _across(row, channels, columns, out):  # type: ignore[no-untyped-def]
    """Interpolate one row to its new width, times 128."""
    for x in range(columns.shape[1]):
        low, high = columns[0, x] * channels, columns[1, x] * channels
        for c in range(channels):
            out[x * channels + c] = (
                row[low + c] * columns[2, x] + row[high + c] * columns[3, x]
            ) >> 4


@compiled()
def _between(low, high, weight_low, weight_high, out):  # type: ignore[no-untyped-def]
    """The weighted mean of two such rows, rounded as OpenCV does."""
    for i in range(len(out)):
        out[i] = ((low[i] * weight_low >> 16) + (high[i] * weight_high >> 16) + 2) >> 2
