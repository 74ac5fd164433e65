"""Former name of `apps.simulate_workflow`."""

import sys

from apps.simulate_workflow import main as main

if __name__ == "__main__":
    sys.exit(main())
