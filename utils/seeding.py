"""Randomness as a function of what it is for: (seed, step, problem, sample), never of what was drawn before.

A resumed run needs no replay, and a draw does not depend on how the work is spread over ranks and batches.
"""

import zlib

import numpy as np


def generator(purpose: str, *key: int) -> np.random.Generator:
    """The random generator that belongs to `purpose` (a word, so that two uses of one key do not meet) and `key`."""
    return np.random.default_rng([zlib.crc32(purpose.encode()), *key])
