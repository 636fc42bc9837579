"""How a command of this project ends: a sentence instead of a traceback where the user can cure it, an exit code."""

import sys
from collections.abc import Callable
from typing import NoReturn

from pipelines.common.errors import DataError

INTERRUPTED = 130  # what a shell expects of a process that Ctrl-C ended


def run(main: Callable[[], int | None]) -> NoReturn:
    """Runs `main` and exits with the code that it returns, 0 for none; 1 and a sentence on a DataError."""
    sys.stdout.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue]: lines come as they are made
    try:
        sys.exit(main())
    except DataError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
