#!/bin/busybox sh
# count.ash FILE N PERIOD_S: counts to N; each line, with a rolling checksum, to stdout and to FILE, which stays open.
set -eu
file=$1 n=${2:-500} period=${3:-0.005}
exec 7>"$file"
i=1 sum=1
while [ "$i" -le "$n" ]; do
    while [ "$i" = "$n" ] && [ -n "${VICTIM_HOLD-}" ] && [ ! -e "${VICTIM_HOLD-}" ]; do sleep "$period"; done
    # Children of the shell, and a pipe between them.
    sum=$(((sum * 69069 + $(echo "$i" | tr 123456789 987654321)) % 4294967296))
    echo "$i $sum"
    echo "$i $sum" >&7
    sleep "$period"
    i=$((i + 1))
done
