#!/usr/bin/python3
"""matrix.py STEPS PERIOD_US: iterates a matrix with numpy; a line with a running checksum each step."""
import os
import sys
import time
import zlib

import numpy

steps, period = int(sys.argv[1]), int(sys.argv[2]) / 1e6
size = 192
matrix = (numpy.arange(size * size, dtype=numpy.float64).reshape(size, size) % 97) / 97
vector = numpy.ones(size)
checksum = 0
for step in range(1, steps + 1):
    while step == steps and "VICTIM_HOLD" in os.environ and not os.path.exists(os.environ["VICTIM_HOLD"]):
        time.sleep(0.001)
    vector = matrix @ vector
    vector /= numpy.abs(vector).max()
    matrix[step % size] += vector * 1e-3
    checksum = zlib.crc32(matrix.tobytes(), zlib.crc32(vector.tobytes(), checksum))
    print(step, f"{checksum:08x}", f"{vector.sum():.12f}", flush=True)
    time.sleep(period)
