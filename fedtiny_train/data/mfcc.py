"""What a keyword network is shown of a second of sound: 49 x 10 mel-frequency cepstral coefficients.

    frames        640 samples (40 ms at 16 kHz) every 320 (20 ms), each under a periodic Hann window
    spectrum      magnitudes of the Fourier transform of a frame filled up to 1024 samples
    mel energies  40 triangles between 20 and 4000 Hz, equally wide in mel = 1127 ln(1 + Hz / 700); the constant
                  part of the spectrum counts for none
    logarithm     ln(energy + 1e-6)
    coefficients  the first 10 of sqrt(2 / 40) sum_n log_n cos(pi k (n + 1/2) / 40)

These are the definitions of tf.signal, so a device can use TensorFlow Lite Micro's or CMSIS-DSP's functions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

RATE = 16_000
WINDOW, STRIDE, TRANSFORM = 640, 320, 1024
MELS, LOW_HZ, HIGH_HZ = 40, 20.0, 4000.0
LINES = 1 + int(HIGH_HZ * TRANSFORM / RATE)  # no band reaches the lines above
COEFFICIENTS = 10
FLOOR = 1e-6
FRAMES = 1 + (RATE - WINDOW) // STRIDE

Doubles = npt.NDArray[np.float64]


def mfcc(clips: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    """Return (N, 49, 10) coefficients of N clips of 16,000 samples each."""
    sound = clips.astype(np.float64) / 32768
    frames = np.lib.stride_tricks.sliding_window_view(sound, WINDOW, axis=1)[:, ::STRIDE]
    spectrum = np.abs(np.fft.rfft(frames * hann(), TRANSFORM, axis=2)[:, :, :LINES])
    # einsum and no matrix product: that one adds in another order with another number of threads.
    energies = np.einsum("nfl,lm->nfm", spectrum, mel_triangles())
    return np.asarray(np.einsum("nfm,mk->nfk", np.log(energies + FLOOR), cosines()), dtype=np.float32)


def hann() -> Doubles:
    """Return the window: one period of a raised cosine, whose last sample is not a second zero."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)


def mel(hertz: npt.ArrayLike) -> Doubles:
    """Return frequencies on the mel scale."""
    return np.asarray(1127.0 * np.log1p(np.asarray(hertz) / 700.0))


def mel_triangles() -> Doubles:
    """Return the weight of each of 257 spectral lines (rows) in each of 40 mel bands (columns)."""
    lines = mel(np.arange(LINES) * (RATE / TRANSFORM))[:, None]
    edges = np.linspace(mel(LOW_HZ), mel(HIGH_HZ), MELS + 2)
    rising = (lines - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - lines) / (edges[2:] - edges[1:-1])
    weights = np.maximum(0.0, np.minimum(rising, falling))
    weights[0] = 0.0
    return np.asarray(weights)


def cosines() -> Doubles:
    """Return the 40 x 10 matrix of the cosine transform."""
    places, orders = np.arange(MELS)[:, None] + 0.5, np.arange(COEFFICIENTS)
    return np.asarray(np.sqrt(2 / MELS) * np.cos(np.pi / MELS * places * orders))
