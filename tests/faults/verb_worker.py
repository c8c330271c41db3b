"""One rank of a verb, as a launcher would have started it: verb_worker.py FAULT VERB ARGUMENT…

FAULT: the value of MEGALADDER_FAULT, or nothing.
"""

import os
import sys

from megaladder.cli import main

if __name__ == "__main__":
    fault, *arguments = sys.argv[1:]
    os.environ["MEGALADDER_FAULT"] = fault
    sys.exit(main(arguments))
