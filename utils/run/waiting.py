"""Whether a thread waits for other processes."""

import ast
import itertools
import linecache
import os
from types import FrameType

COLLECTIVES = (f"{os.sep}torch{os.sep}distributed{os.sep}", f"{os.sep}deepspeed{os.sep}comm{os.sep}")
# What returns once the GPU has done all that it was given; NCCL's collectives are among that, and return at once.
FOR_THE_GPU = {"item", "tolist", "cpu", "to", "numpy", "nonzero", "synchronize", "_cuda_synchronize", "float", "int",
               "bool"}


def waits(frame: FrameType | None, on_gpu: bool) -> bool:
    """Whether the thread whose innermost frame this is is in a collective, or, `on_gpu`, in a call that waits for the
    GPU."""
    if on_gpu and frame is not None and called(frame) in FOR_THE_GPU:
        return True
    while frame is not None:
        if any(part in frame.f_code.co_filename for part in COLLECTIVES):
            return True
        frame = frame.f_back
    return False


def called(frame: FrameType) -> str:
    """The name of the function or method that a frame is calling; "" where it is in none, or its text is not known."""
    places = itertools.islice(frame.f_code.co_positions(), frame.f_lasti // 2, None)  # two bytes each
    first, last, start, end = next(places, (None,) * 4)
    if first is None or last is None or start is None or end is None:
        return ""
    lines = [linecache.getline(frame.f_code.co_filename, number).encode() for number in range(first, last + 1)]
    lines[-1] = lines[-1][:end]
    lines[0] = lines[0][start:]
    try:
        call = ast.parse(b"(" + b"".join(lines) + b")", mode="eval").body
    except (SyntaxError, ValueError):  # the file is another by now
        return ""
    function = call.func if isinstance(call, ast.Call) else None
    return getattr(function, "attr", getattr(function, "id", ""))
