"""How the loops over events are compiled. Not by snn.ops.compiled, which would load torch into every worker."""

import numba

kernel = numba.njit(nogil=True, cache=True, error_model="numpy")
inlined = numba.njit(error_model="numpy")
