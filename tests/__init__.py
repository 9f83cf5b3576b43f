"""Tests search for unreachable cycles less often than Python does by default.

Traced programs are millions of small objects, and a tenth of the time of all tests went into walking over them.
"""

import gc

gc.set_threshold(50_000, 10, 10)
