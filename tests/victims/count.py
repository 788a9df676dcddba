#!/usr/bin/python3
"""count.py FILE N PERIOD_US: counts to N; each line, with a checksum over a table, to stdout and to FILE."""
import hashlib
import os
import sys
import time

path, n, period = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) / 1e6
table = {str(k): k * k for k in range(2000)}
digest = hashlib.sha256()
with open(path, "w") as file:
    for i in range(1, n + 1):
        while i == n and "VICTIM_HOLD" in os.environ and not os.path.exists(os.environ["VICTIM_HOLD"]):
            time.sleep(0.001)
        key = str(i * 7919 % 2000)
        table[key] += i
        digest.update(f"{key}={table[key]};".encode())
        line = f"{i} {digest.hexdigest()[:16]} {sum(table.values()) & 0xFFFFFFFF:08x}\n"
        for out in (sys.stdout, file):
            out.write(line)
            out.flush()
        time.sleep(period)
