# work=N: arrays, random numbers, a pipe to sort that stays open; a line each step.
BEGIN {
    srand(7)
    for (step = 1; step <= 600; step++) {
        for (i = 0; i < work; i++) { k = int(rand() * 5000); sum[k] += rand(); n[k]++ }
        t = 0
        for (k = 0; k < 5000; k++) t += sum[k] / (n[k] + 1)
        printf "%d %.12f\n", step, t
        fflush()
        printf "%.9f %d\n", t, step | "sort -n > sorted"
    }
}
