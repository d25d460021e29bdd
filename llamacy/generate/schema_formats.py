"""Formats of strings in JSON schemas, as patterns: those that are kept, and those that are refused by name."""

# Years that have a 29th of February, of those from 0001 on.
_LEAP = r"(?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DATE = (
    r"(?:\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))"
    rf"|{_LEAP}-02-29)"
)
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
# No two hyphens in a row: "xn--" begins what stands for other letters, and not everything may.
_LABEL = r"[a-z0-9]{1,12}(?:-[a-z0-9]{1,12})?"
_HOST = rf"{_LABEL}(?:\.{_LABEL}){{0,8}}"
_BYTE = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"

# What each pattern allows is of the format, if not always all of it.
PATTERNS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": r"P(?:\d{1,6}W|(?:\d{1,6}Y(?:\d{1,6}M(?:\d{1,6}D)?)?|\d{1,6}M(?:\d{1,6}D)?|\d{1,6}D)"
    r"(?:T(?:\d{1,6}H(?:\d{1,6}M(?:\d{1,6}S)?)?|\d{1,6}M(?:\d{1,6}S)?|\d{1,6}S))?"
    r"|T(?:\d{1,6}H(?:\d{1,6}M(?:\d{1,6}S)?)?|\d{1,6}M(?:\d{1,6}S)?|\d{1,6}S))",
    "uuid": r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}",
    "email": rf"[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*@{_HOST}\.[a-z]{{2,16}}",
    "hostname": _HOST,
    "ipv4": rf"{_BYTE}(?:\.{_BYTE}){{3}}",
    "ipv6": r"[0-9a-f]{1,4}(?::[0-9a-f]{1,4}){7}",
    "uri": rf"[a-z][a-z0-9+.-]*://{_HOST}(?::\d{{1,4}})?(?:/[A-Za-z0-9._~-]*)*(?:\?[A-Za-z0-9._~=&-]*)?",
    "json-pointer": r"(?:/(?:[^~/]|~[01])*)*",
}
PATTERNS["uri-reference"] = PATTERNS["iri"] = PATTERNS["iri-reference"] = PATTERNS["uri"]
PATTERNS["idn-email"], PATTERNS["idn-hostname"] = PATTERNS["email"], PATTERNS["hostname"]
# JSON Schema's own that are not built; whatever else a format is called is a note.
REFUSED = {"uri-template", "relative-json-pointer", "regex"}
