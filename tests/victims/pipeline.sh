#!/bin/bash
# pipeline.sh N PERIOD_S: four processes in a pipeline, with data under way between them all the time.
set -eu
n=${1:-500} period=${2:-0.005}
produce() {
    exec 8<> <(:)
    for ((i = 1; i <= n; i++)); do
        while ((i == n)) && [[ ${VICTIM_HOLD-} && ! -e $VICTIM_HOLD ]]; do read -r -t "$period" -u 8 || true; done
        echo "$i $((i * 7919 % 10007))"
        read -r -t "$period" -u 8 || true
    done
}
produce | while read -r a b; do echo "$a $((a * b))"; done | tee >(md5sum >&2) |
    while read -r a b; do
        sum=$(((${sum:-1} * 31 + b) & 0x7fffffffffff))
        echo "$a $b $sum"
    done
