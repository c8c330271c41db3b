"""Run by the environment's own Python.

Prints the pins (`name==version`) that are missing or incomplete, one a line; exit 0.

Incomplete = the list of installed files (RECORD) is missing, or a file in it is missing or has
another size: what a killed pip leaves. Metadata that would keep pip from replacing such a package
is removed here. Standard library and pip's own `packaging` only.
"""

import shutil
import sys
from importlib import metadata
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement


def main(pin_files):
    text_of_all = "\n".join(Path(name).read_text(encoding="utf-8") for name in pin_files)
    for line in text_of_all.splitlines():
        text = line.split("#")[0].strip()
        if not text:
            continue
        pin = Requirement(text)
        if (pin.marker is None or pin.marker.evaluate()) and not is_complete(pin):
            print(f"{pin.name}{pin.specifier}")
    return 0


def is_complete(pin):
    """True if the package is there in that version with all its files."""
    try:
        distribution = metadata.distribution(pin.name)
    except metadata.PackageNotFoundError:
        return False
    files = distribution.files
    version = distribution.metadata["Version"] if distribution.read_text("METADATA") else None
    if files is None or version is None:
        # without RECORD pip can neither remove nor replace it
        shutil.rmtree(str(distribution._path), ignore_errors=True)
        return False
    return version in pin.specifier and all(has_size(file) for file in files)


def has_size(file):
    """Compares with RECORD.

    Byte code (Python rewrites it) and entries without a size (RECORD itself) always pass."""
    if file.size is None or file.suffix == ".pyc":
        return True
    try:
        return file.locate().stat().st_size == file.size
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
