"""Datalists of public data sets: one function each, from the folder as published to splits by patient.

Every function takes the data set's folder and a seed and returns split name -> items (see `anatomy_ssl.data.datalist`);
where the published layout is not found it raises FileNotFoundError with the layout expected and what is there instead.
"""

from .petct import autopet
from .radiographs import chestxray14, chexpert, jsrt, rsna_pneumonia, shenzhen
from .volumes import brats, btcv, flare22

__all__ = ["autopet", "brats", "btcv", "chestxray14", "chexpert", "flare22", "jsrt", "rsna_pneumonia", "shenzhen"]
