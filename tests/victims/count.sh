#!/bin/bash
# count.sh FILE N PERIOD_S: counts to N; each line, with a rolling checksum, to stdout and to FILE, which stays open.
set -eu
file=$1 n=${2:-500} period=${3:-0.005}
exec 7>"$file"
# read -t on a pipe that never speaks is a sleep without a child process.
exec 8<> <(:)
sum=1
table=()
for ((i = 1; i <= n; i++)); do
    while ((i == n)) && [[ ${VICTIM_HOLD-} && ! -e $VICTIM_HOLD ]]; do read -r -t "$period" -u 8 || true; done
    table[i % 64]=$sum
    sum=$(((sum * 6364136223846793005 + i + ${table[sum & 63]:-7}) & 0x7fffffffffffffff))
    echo "$i $sum"
    echo "$i $sum" >&7
    read -r -t "$period" -u 8 || true
done
