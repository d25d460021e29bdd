"""Text that was read from files, made fit to be shown: see llamacy.errors."""

from llamacy.errors import printable, shown

__all__ = ["printable", "shown"]
