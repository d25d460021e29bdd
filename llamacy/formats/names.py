"""Text that was read from files, made fit to be shown: see llamacy.errors."""

from llamacy.errors import printable, shown, some

__all__ = ["printable", "shown", "some"]
