"""An invisible mark of pictures that its key finds again: whether it is there, and nothing else.

Spread spectrum (Cox et al. 1997) in the middle frequencies of blocks of 8 x 8 pixels, where JPEG has its own: a secret
key decides by a fair coin for each coefficient whether it should be positive or negative. Embedding, which knows the
picture (Cox, Miller & McKellips 1999), turns those that little change suffices for; the detector counts how many have
the key's sign. The mark says nothing of a picture that is cropped, turned or resized: then the blocks lie elsewhere.
"""

from hashlib import shake_256

import numpy as np
import torch
from torch import Tensor

from gengen.generation.evidence import Evidence

PURPOSE = b"gengen picture mark"
SIDE = 8  # of a block
MOST = 2  # of 255, that a value is changed at most: PSNR is at least 20 log10(255 / 2) = 42.1 dB
BAND = np.array([(u, v) for u in range(SIDE) for v in range(SIDE) if 2 <= u + v <= 5 and 1 <= max(u, v) <= 4])
"""Frequencies (down, across) that carry the mark: JPEG keeps them, and eyes do not see a change of them as steps."""
MARGIN = 4.0  # that a coefficient is brought to, which rounding and the coarser steps of JPEG do not undo
REACH = 10.0  # how far on the wrong side a coefficient may be and still be turned
ROUNDS = 8
NOTHING = 0.75  # coefficients smaller than this are rounding, and are not counted
LUMA = np.array([0.299, 0.587, 0.114])


def cosines() -> np.ndarray:
    """The orthonormal DCT-II of SIDE points, (frequency, place)."""
    frequency, place = np.mgrid[:SIDE, :SIDE]
    basis = np.cos(np.pi * frequency * (2 * place + 1) / (2 * SIDE)) * (2 / SIDE) ** 0.5
    basis[0] /= 2**0.5
    return basis


DCT = cosines()


def signs(key: bytes, rows: int, columns: int) -> np.ndarray:
    """What the key wants of each block's frequencies, (rows, columns, BAND) of -1 and 1; block (y, x) has the same in
    pictures of any size."""
    wanted = np.empty((rows, columns, len(BAND)))
    for y in range(rows):
        for x in range(columns):
            digest = shake_256(PURPOSE + key + y.to_bytes(4) + x.to_bytes(4)).digest(-(-len(BAND) // 8))
            wanted[y, x] = np.unpackbits(np.frombuffer(digest, np.uint8), count=len(BAND))
    return 2 * wanted - 1


def blocks(plane: np.ndarray) -> np.ndarray:
    """Cut (H, W) into whole blocks, (rows, columns, SIDE, SIDE); what is left over at the right and below is left
    out."""
    rows, columns = plane.shape[0] // SIDE, plane.shape[1] // SIDE
    return plane[: rows * SIDE, : columns * SIDE].reshape(rows, SIDE, columns, SIDE).swapaxes(1, 2)


def coefficients(plane: np.ndarray) -> np.ndarray:
    """The band's DCT coefficients of each whole block of (H, W), (rows, columns, BAND)."""
    return (DCT @ blocks(plane) @ DCT.T)[..., BAND[:, 0], BAND[:, 1]]


def from_coefficients(band: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The plane (H, W) that has these coefficients (rows, columns, BAND), and no others."""
    rows, columns = band.shape[:2]
    spectrum = np.zeros((rows, columns, SIDE, SIDE))
    spectrum[..., BAND[:, 0], BAND[:, 1]] = band
    plane = np.zeros(shape)
    plane[: rows * SIDE, : columns * SIDE] = (
        (DCT.T @ spectrum @ DCT).swapaxes(1, 2).reshape(rows * SIDE, columns * SIDE)
    )
    return plane


def luma(image: np.ndarray) -> np.ndarray:
    """(C, H, W) uint8, grey or RGB -> brightness (H, W)."""
    return np.tensordot(LUMA if len(image) == 3 else np.ones(1), image.astype(float), 1)


def marked(image: np.ndarray, key: bytes) -> np.ndarray:
    """Return a picture (C, H, W) uint8, C = 1 or 3, with the mark; no value changes by more than MOST.

    All channels change alike, so colours stay. What is cut off by MOST and by black and white is made up for in
    further rounds, by what may still change.
    """
    host = luma(image)
    wanted = signs(key, host.shape[0] // SIDE, host.shape[1] // SIDE)
    turned = wanted * coefficients(host) > -REACH
    low, high = -image.min(0).astype(float), 255 - image.max(0).astype(float)
    low, high = np.maximum(low, -MOST), np.minimum(high, MOST)
    change = np.zeros_like(host)
    for _ in range(ROUNDS):
        missing = np.maximum(MARGIN - wanted * coefficients(host + change), 0)
        change = np.clip(change + from_coefficients(wanted * missing * turned, host.shape), low, high)
    return (image + np.rint(change)).astype(np.uint8)


def marked_batch(images: Tensor, key: bytes) -> Tensor:
    """Return pictures (N, C, H, W) uint8 with the mark, on the CPU."""
    return torch.from_numpy(np.stack([marked(image, key) for image in images.cpu().numpy()]))


def detect(image: np.ndarray, key: bytes) -> Evidence:
    """Count the coefficients of a picture (C, H, W) uint8 that have the key's sign."""
    band = coefficients(luma(image))
    counted = np.abs(band) >= NOTHING
    wanted = signs(key, *band.shape[:2])
    return Evidence(int((counted & (wanted * band > 0)).sum()), int(counted.sum()))
