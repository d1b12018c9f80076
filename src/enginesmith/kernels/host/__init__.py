"""Steps on the host: no kernels, but problems like any other for the planner."""
