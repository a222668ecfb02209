"""What an import brings along, asked of one process that imports slow packages once.

Run as a script: it reads, as JSON, what is imported first, with the code of the questions after it;
it writes a line for each, with the error that its code has ended in. Each is answered by a fork, in
which nothing has been imported but what comes first.
"""

import json
import os
import sys


def main():
    for first, questions in json.load(sys.stdin).items():
        in_a_fork(answer_all, first, questions)


def answer_all(first, questions):
    exec(f"import {first}")  # noqa: S102
    for code in questions:
        in_a_fork(answer, code)


def answer(code):
    try:
        exec(code, {})  # noqa: S102
        error = ""
    except BaseException as raised:
        error = f"{type(raised).__name__}: {raised}"
    print(json.dumps([code, error]), flush=True)  # noqa: T201


def in_a_fork(work, *arguments):
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    status = 1
    try:
        work(*arguments)
        status = 0
    finally:
        os._exit(status)  # nothing of the parent's is flushed or closed twice


if __name__ == "__main__":
    main()
