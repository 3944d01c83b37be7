"""What the commands share: refusals, and a type of option."""

import contextlib
from typing import Annotated

import tyro

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


class Refused(Exception):
    """What the user asked for cannot be started; the message says why."""


@contextlib.contextmanager
def refusing(*errors: type[Exception]):
    """While this runs, such an error (ValueError and OSError, if none is named) means that nothing was started."""
    errors = errors or (ValueError, OSError)
    try:
        yield
    except errors as error:
        raise Refused(str(error)) from error
