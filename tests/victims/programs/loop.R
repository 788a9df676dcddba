# A matrix and random numbers; a line each step.
set.seed(7)
m <- matrix(rnorm(90000), 300)
for (i in 1:500) {
    m <- m %*% matrix(rnorm(90000), 300)
    m <- m / max(abs(m))
    cat(i, format(sum(m), digits = 15), rnorm(1), sample(1000, 1), "\n")
}
cat(format(solve(m + diag(300))[1:3, 1], digits = 12), "\n")
