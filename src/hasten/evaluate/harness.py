"""What runs a program and its tests inside the sandbox.

The interpreter is given this text with -c, for nothing of the project can be imported there.  A request comes
through descriptor 3 and the outcome goes through 4: the word that follows the request says that all tests
are through, and it is read only then.  A program that ends by itself, prints what it likes or replaces what
it finds in `builtins` cannot say it by accident.
"""

import json
import os
import sys
import types

REQUEST, REPORT = 3, 4
TOKEN_BYTES = 16
DETAIL = 200
"""Characters of what an exception says."""
MODULE = "solution"
"""What the program's module is called: not `__main__`, for its examples are not what is asked about."""


def receive(descriptor: int) -> bytes:
    """A request: its length in 8 bytes, then itself."""
    return read_exactly(descriptor, int.from_bytes(read_exactly(descriptor, 8), "big"))


def read_exactly(descriptor: int, size: int) -> bytes:
    """So many bytes, and none that follow."""
    data = b""
    while len(data) < size:
        part = os.read(descriptor, size - len(data))
        if not part:
            raise EOFError("the request ends early")
        data += part
    return data


def main() -> None:
    """Run the program, then its tests one by one in its namespace, and report."""
    request = json.loads(receive(REQUEST))
    # What is needed after the program has run is taken before: it may put anything in place of anything.
    run, read, write, leave, tell = exec, os.read, os.write, os._exit, report
    is_a, failure = isinstance, AssertionError
    module = types.ModuleType(MODULE)
    sys.modules[MODULE] = module
    passed, testing = 0, False
    try:
        tests = [compile(test, "test", "exec", dont_inherit=True) for test in request["tests"]]
        run(compile(request["program"], "program", "exec", dont_inherit=True), module.__dict__)
        testing = True
        for test in tests:
            run(test, module.__dict__)
            passed += 1
        message = read(REQUEST, TOKEN_BYTES)
    except MemoryError:
        message = b'{"kind": "memory"}'  # there may be no room for more words
    except SystemExit:
        message = b'{"kind": "exited"}'
    except BaseException as error:
        message = tell("failed" if testing and is_a(error, failure) else "error", error, passed)
    write(REPORT, message)
    leave(0)


def report(kind: str, error: BaseException, passed: int) -> bytes:
    """What went wrong, in JSON."""
    try:
        detail = f"{type(error).__name__}: {error}"[:DETAIL]
    except BaseException:  # how it is spelled is the program's own code
        detail = type(error).__name__
    return json.dumps({"kind": kind, "detail": detail, "tests_passed": passed}).encode()


if __name__ == "__main__":
    main()
