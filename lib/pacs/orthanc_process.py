"""Program that becomes another one: started by `lib.jobs.child_process`, that one ends with its parent too.

    python -m lib.jobs.child_process --parent PID lib.pacs.orthanc_process PROGRAM ARGUMENT ...

The request to the kernel to be ended with the parent stays when the program of a process is replaced (prctl(2),
`PR_SET_PDEATHSIG`).
"""

import os
import sys


def main() -> None:
    """Replace this process by the program that the command line names."""
    os.execv(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
