"""One rank of `analyze shift`: the arguments are the verb's."""

import sys

from megaladder.cli import main

sys.exit(main(["analyze", "shift", *sys.argv[1:]]))
