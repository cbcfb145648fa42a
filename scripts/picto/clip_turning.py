"""The foreground of a clip's frames, and its total rotation over the clip.

Rotations are estimated in polar coordinates by Fourier coefficients, like Reddy and Chatterji do
for two images (1996, "An FFT-based technique for translation, rotation, and scale-invariant image
registration").
"""

import numpy as np

Array = np.ndarray
FOREGROUND = 24.0
"""A pixel is foreground if it differs from the border's colour by more (0 … 255, channel mean)."""
RATES = sorted(np.radians(np.arange(-180, 181, 3)), key=abs)
"""Candidates for the total rotation in radians; of two equally good ones the smaller wins."""
RADIUS, DIRECTIONS, ORDERS = 26, 180, 40
"""Maximum distance from the centre, in 64ths of the width; number of directions; maximum angular
frequency."""


def without_ground(frames: Array) -> Array:
    """Return each pixel's difference from the border's median colour: (f, h, w, 3), -255 … 255."""
    edge = np.concatenate([frames[:, 0], frames[:, -1], frames[:, :, 0], frames[:, :, -1]], axis=1)
    colour = np.median(edge.reshape(-1, 3), axis=0)
    return frames.astype(np.float32) - colour.astype(np.float32)


def foreground(frames: Array) -> Array:
    """Return each pixel's distance from the border's median colour: (f, h, w) in 0 … 255."""
    return np.abs(without_ground(frames)).mean(axis=3)


def centre(weights: Array, x: Array, y: Array) -> Array:
    """Return the weights' centre (x, y)."""
    total = weights.sum() + 1e-6
    return np.array([(weights * x).sum(), (weights * y).sum()]) / total


def covered(away: Array) -> Array:
    """Return foreground weights, 0 … 1."""
    return np.clip((away - FOREGROUND / 2) / FOREGROUND, 0, 1)


def around_centre(frames: Array) -> Array:
    """Unroll frames without background about the foreground's centre: (f, angles, radii, 3).

    Angles go clockwise through DIRECTIONS, radii to RADIUS; each ring is weighted by its length.
    """
    import cv2

    height, width = frames.shape[1:3]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    scale = 64 / width
    rings = np.sqrt(np.arange(RADIUS))[:, None]
    unrolled = []
    for colours, away in zip(without_ground(frames), foreground(frames), strict=True):
        middle = centre(covered(away), x, y)
        size, kind = (RADIUS, DIRECTIONS), cv2.WARP_POLAR_LINEAR | cv2.WARP_FILL_OUTLIERS
        unrolled.append(cv2.warpPolar(colours, size, middle.tolist(), RADIUS / scale, kind) * rings)
    return np.stack(unrolled)


def turn_of(frames: Array) -> float:
    """Return the total rotation in radians, clockwise, at most half a turn, at a constant rate.

    It is the one of RATES at which the mean of the frames, rotated back, has the largest variance
    along the angle. A rotation by an angle is a factor of each of the angle's Fourier coefficients.
    """
    orders = np.arange(1, ORDERS)
    coefficients = np.fft.fft(around_centre(frames), axis=1)[:, 1:ORDERS]
    done = np.linspace(0, 1, len(frames))[:, None]

    def agreement(rate: float) -> float:
        back = np.exp(1j * rate * done * orders)[..., None, None]
        return float((np.abs((coefficients * back).mean(axis=0)) ** 2).sum())

    return float(max(RATES, key=agreement))
