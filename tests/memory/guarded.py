"""A pytest plugin (-p guarded): NumPy's arrays end at a page that nobody may touch."""

import guard
import numpy as np

guard.start()
assert np._core.multiarray.get_handler_name(np.empty(3)) == "guard"
