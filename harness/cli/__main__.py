"""`python -m inpbench.harness.cli` is `bench`: for launchers that start Python modules, such as torchrun."""

import sys

from inpbench.harness.cli import main

if __name__ == "__main__":
    sys.argv[0] = "bench"  # as it stands in a record's stamp
    main()
