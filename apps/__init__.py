"""Programs: `python -m apps.train`, `apps.infer`, `apps.demo`."""

import os

# Threads that wait for work sleep instead of spinning: on a machine that also serves, or runs a second
# program, spinning threads slow each other down severalfold. Read by OpenMP when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
