"""Creates `.venv` with the exact pins of cpu.txt and docs.txt; run by `make`.

Fast when nothing changed, repairs an interrupted install.

    python3 tools/env/setup_env.py            create, update or repair
    python3 tools/env/setup_env.py --check    exit 0 if the environment is complete and current, 1
    if not

Standard library only, and no syntax newer than Python 3.6 in this file, so that an old Python
prints the message and no traceback. It installs from wherever pip is configured to look (pip.conf,
PIP_* variables); torch==2.13.0 may come as a CPU or a CUDA build.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PINS = os.path.join(ROOT, "tools", "env", "cpu.txt")
DOCS = os.path.join(ROOT, "tools", "env", "docs.txt")
VERIFIER = os.path.join(ROOT, "tools", "env", "verify_env.py")
VENV = os.environ.get("MEGALADDER_VENV") or os.path.join(ROOT, ".venv")
STAMP = os.path.join(VENV, "megaladder-stamp.txt")
SUPPORTED = ((3, 11), (3, 12))
# 4 GiB installed, the same again for downloads and unpacking; a CUDA build of torch takes more
NEEDED_GIB = 8.0
USABLE = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"


class SetupError(Exception):
    """Something the user has to change; printed without a traceback, exit status 2."""


def main(args):
    """Returns the exit status: 0 ready, 1 not ready (`--check`), 2 the user has to act."""
    wanted = stamp()
    if is_current(wanted):
        return 0
    if "--check" in args:
        return 1
    try:
        # two `make` at once: the second waits, then finds the work done
        lock = os.open(ROOT, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not is_current(wanted):
                build(wanted)
        finally:
            os.close(lock)
    except SetupError as error:
        sys.stderr.write("setup: %s\n" % error)
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("setup: interrupted; fix: run it again, it goes on from here\n")
        return 130
    return 0


def stamp():
    """Hash of everything that decides what is installed."""
    digest = hashlib.sha256()
    for name in (PINS, DOCS, os.path.join(ROOT, "setup.py"), VERIFIER, os.path.abspath(__file__)):
        with open(name, "rb") as file:
            digest.update(file.read())
    digest.update(ROOT.encode())  # the editable install points here
    return digest.hexdigest()


def is_current(wanted):
    try:
        with open(STAMP) as file:
            found = file.readline().strip()
        return found == wanted and os.access(venv_python(), os.X_OK)
    except OSError:
        return False


def refuse_foreign():
    """An environment whose stamp names another checkout that is still there belongs to it.

    An installation from here would leave that one with this code."""
    try:
        with open(STAMP) as file:
            owner = file.read().splitlines()[1:2]
    except OSError:
        return
    if owner and owner[0] != ROOT and os.path.isdir(os.path.join(owner[0], "tools", "env")):
        raise SetupError(
            "%s is the environment of the checkout %s, this one is %s; fix: another"
            " MEGALADDER_VENV (or none: .venv in this folder), or remove that environment"
            % (VENV, owner[0], ROOT)
        )


def venv_python():
    return os.path.join(VENV, "bin", "python")


def build(wanted):
    """Everything between nothing (or a half) and a stamped environment."""
    began = time.time()
    refuse_foreign()
    if os.path.exists(STAMP):
        os.unlink(STAMP)
    python = find_python()
    require_disk(python)
    create_venv(python)
    say("installing torch, then the other pins of tools/env/cpu.txt (about 4 GB; minutes, once)")
    clear_leftovers()
    install(["-c", PINS, torch_pin()])
    install(["--no-deps", "-r", PINS, "-r", DOCS])
    repair()
    install(["--no-deps", "--no-build-isolation", "-e", ROOT])
    temporary = STAMP + ".tmp"
    with open(temporary, "w") as file:
        file.write("%s\n%s\n" % (wanted, ROOT))
    os.replace(temporary, STAMP)
    say("ready: %s (%.0f s)" % (VENV, time.time() - began))


def find_python():
    """A Python that the pins support and that can make environments.

    Of an existing .venv, this one, or one on PATH."""
    candidates = [venv_python(), sys.executable] + [
        "python%d.%d" % version for version in SUPPORTED
    ]
    seen = []
    for candidate in candidates:
        try:
            run = subprocess.run(
                [candidate, "-c", USABLE],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=60,
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        version = run.stdout.decode().strip()
        if run.returncode == 0 and tuple(int(part) for part in version.split(".")) in SUPPORTED:
            return candidate
        seen.append("%s (%s)" % (candidate, version or "without venv or ensurepip"))
    raise SetupError(
        "needs Python 3.11 or 3.12 with venv and ensurepip; found %s; fix: install python3.11"
        " (Debian and Ubuntu: python3.11 and python3.11-venv), or name one: make"
        " PYTHON=/path/to/python3.11 ..." % (", ".join(seen) or "none")
    )


def require_disk(python):
    """Room for a first installation; an existing environment is only updated."""
    if os.path.isdir(os.path.join(VENV, "lib")):
        return
    folder = os.path.dirname(os.path.abspath(VENV))
    free_gib = shutil.disk_usage(folder).free / 1024.0**3
    wanted = float(os.environ.get("MEGALADDER_NEEDED_GIB", NEEDED_GIB))
    if free_gib < wanted:
        raise SetupError(
            "%s has %.1f GiB free, the installation needs about %.0f GiB; fix: free some space, or"
            " put the environment elsewhere: MEGALADDER_VENV=/other/disk/venv make ..."
            % (folder, free_gib, wanted)
        )


def create_venv(python):
    """A new environment, or the existing one if its Python runs and is supported.

    In the latter case `python` is that one."""
    if python == venv_python():
        check(
            [python, "-m", "ensurepip", "--upgrade"],
            "pip could not be put into the environment",
            quiet=True,
        )
        return
    say("creating %s with %s" % (VENV, python))
    check([python, "-m", "venv", "--clear", VENV], "the environment could not be created")


def torch_pin():
    with open(PINS) as file:
        return next(line.strip() for line in file if line.startswith("torch=="))


def install(arguments):
    check(
        [venv_python(), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        + arguments,
        "pip install %s failed (its message is above)" % " ".join(arguments),
    )


def repair():
    """Reinstalls what an interrupted pip left incomplete.

    Metadata without files, files with the wrong size."""
    for attempt in range(2):
        run = subprocess.run([venv_python(), VERIFIER, PINS, DOCS], stdout=subprocess.PIPE)
        broken = run.stdout.decode().split()
        if run.returncode == 0 and not broken:
            return
        if attempt == 0 and broken:
            say("repairing %d incomplete packages: %s" % (len(broken), " ".join(broken)))
            install(["--no-deps", "--force-reinstall"] + broken)
    raise SetupError("%s cannot be repaired; fix: rm -rf %s, then run it again" % (VENV, VENV))


def clear_leftovers():
    """`~name` folders are what pip renames a package to while it replaces it."""
    base = os.path.join(VENV, "lib")
    for version in os.listdir(base):
        packages = os.path.join(base, version, "site-packages")
        for name in os.listdir(packages) if os.path.isdir(packages) else []:
            if name.startswith("~"):
                shutil.rmtree(os.path.join(packages, name), ignore_errors=True)


def check(command, failure, quiet=False):
    done = subprocess.run(command, stdout=subprocess.DEVNULL if quiet else None)
    if done.returncode != 0:
        raise SetupError(
            "%s; fix: see above (network, disk, permissions), then run it again: it goes on from"
            " here" % failure
        )


def say(text):
    print("setup: " + text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
