"""Runs many command lines, each in a fork of one process that has paid the imports. Not a test itself.

    python forked_cli.py CASES_JSON      CASES_JSON: list of argument lists; prints one {"status", "stdout", "stderr"} a line
"""
import json
import os
import sys
import tempfile
import traceback


def run(arguments: list[str]) -> dict:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        pid = os.fork()
        if pid == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            status = 1
            try:
                from megaladder.cli import main

                status = main(arguments)
            except SystemExit as end:
                status = end.code
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        out.seek(0)
        err.seek(0)
        return {"status": status, "stdout": out.read(), "stderr": err.read()}


def main() -> None:
    import megaladder.train.sft  # noqa: F401  (imported once, before the forks)

    for arguments in json.loads(sys.argv[1]):
        print(json.dumps(run(arguments)), flush=True)


if __name__ == "__main__":
    main()
