"""Text that was read from files, made fit to be shown."""


def printable(text):
    """Return `text` with everything that could act on a terminal or break the line written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(name):
    """Return a name read from a file (str, bytes or whatever stands there) as one short printable text, quoted."""
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
    return ascii(text if len(text) <= 80 else text[:77] + "...")
