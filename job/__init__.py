"""The cluster side: everything that travels in the package and runs on the Ray cluster."""

VERSION = "0.1.0"
# Oldest Ray whose Ray Data has all that the pipeline is built on.
RAY_FLOOR = "2.49"
