"""Programs, each a subcommand of `organnet` and a module: `organnet infer` is `python -m apps.infer`."""

import os

# Waiting threads sleep instead of spinning. Spinning threads slow a server or a second program on the same
# machine down severalfold. OpenMP reads this variable when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
