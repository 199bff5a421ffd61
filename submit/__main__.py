"""`python -m rayferry.submit`: the same command, where no script is installed, such as on a cluster."""

import sys
from pathlib import Path

# What a scheduler brings along to a cluster counts only where the cluster has none of its own.
sys.path.append(str(Path(__file__).parents[2] / "carried"))

from rayferry.submit.cli import main

if __name__ == "__main__":
    main(prog_name="rayferry")
