"""The mathematics of the loop: schedule, solvers, noise. NumPy alone."""
