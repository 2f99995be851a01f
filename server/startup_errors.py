"""How every command says that it cannot start: each reason on a line of its own, and one exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from mainspring.core.errors import EXIT_STARTUP, RequestError, StartupError


@contextmanager
def startup_errors() -> Iterator[None]:
    """Print every reason why it cannot start, and exit with the code for that."""
    try:
        yield
    except StartupError as error:
        for reason in error.reasons:
            click.echo(f"mainspring: {reason}", err=True)
        sys.exit(EXIT_STARTUP)
    except RequestError as error:
        raise click.ClickException(error.message) from error
