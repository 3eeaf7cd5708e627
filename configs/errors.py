"""The one exception that means "the input is wrong", and the wrapper that turns it into one line for people."""

import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(ValueError):
    """Wrong input from a person: says what was wanted, what was found, where, and what to do."""


def run_command(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Run a command-line `main(argv)` and leave: 2 for wrong input, 130 after Ctrl-C, else what `main` returned.

    A `UserError` is printed as one message without a traceback. Every other exception is a bug of ours and keeps
    its traceback.
    """
    try:
        code = main(sys.argv[1:]) or 0
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        # The reader of our output went away (`... | head`): that is its right, and no error of the command.
        sys.stderr.close()
        code = 0
    sys.exit(code)
