"""The type of every array of numbers."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# By field of a dataclass, as the class variable ``shapes``: the names of its dimensions, and of tuples their length. A name is
# one size in the dataclass; one in capitals is one size in the whole result. ``K-1`` is one less than K, ``2`` is 2, ``*`` any.
Shapes = Mapping[str, str]
