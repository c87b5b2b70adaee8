"""What can be asked of any picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def pixels(path: Path) -> np.ndarray:
    """The picture as `(height, width, 3)`, after checking that it is large enough to read and shows something."""
    with Image.open(path) as image:
        array = np.asarray(image.convert("RGB"))
    assert array.shape[1] >= 800
    assert array.shape[0] >= 300
    assert array.std() > 5
    assert (array != array[0, 0]).any(axis=2).mean() > 0.002
    return array
