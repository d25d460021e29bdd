"""The process that renders Jinja chat templates: a script that llamacy.text.jinja starts, which also says why.

argv[1] holds its limits as JSON. Each line on stdin is a request, {"template": source, null for the one before,
"values": {...}}; the answer on stdout is a line `kind size` and so many bytes of UTF-8: the text, or what went wrong.
"""

import contextlib
import json
import signal
import sys
from datetime import datetime

try:
    import resource
except ImportError:  # not on this system: templates are bounded in time alone
    resource = None

# Of an error's own text no more than this is passed on, in characters.
MESSAGE = 1000


def make_environment():
    """Return Jinja's sandbox, set up as transformers does for chat templates; ImportError without jinja2."""
    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """`{% generation %}...{% endgeneration %}` marks the assistant's own words; here it only shows them."""

        tags = {"generation"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(["name:endgeneration"], drop_needle=True)

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": _strftime_now}
    return environment


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form):
    return datetime.now().strftime(form)


class Renderer:
    """Compiles and renders; `output`: the most characters of a text."""

    def __init__(self, environment, output):
        self._environment, self._output = environment, output
        self._compiled = self._failure = None  # of the last template

    def answer(self, source, values):
        """Return (kind, text): what the template writes, or how and why it does not."""
        try:
            if source is not None:
                self._failure = self._compile(source)
            return self._failure or self._render(values)
        except MemoryError:
            return "memory", ""

    def _compile(self, source):
        """Keep the compiled template; return (kind, text) where that cannot be."""
        import jinja2

        try:
            self._compiled = self._environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            return "invalid", f"line {error.lineno}: {_said(error.message)}"
        except MemoryError:
            raise
        except SyntaxError as error:  # Python's, of what Jinja made of the template
            return "invalid", _said(error.msg)
        except RecursionError:
            return "invalid", "it is nested too deeply"
        except Exception as error:
            return "invalid", f"{type(error).__name__}: {_said(error)}"
        return None

    def _render(self, values):
        import jinja2

        parts, size = [], 0
        try:
            for part in self._compiled.generate(**values):
                parts.append(part)
                size += len(part)
                if size > self._output:
                    return "output", ""
        except jinja2.TemplateError as error:
            return "refuses", _said(error)
        except MemoryError:
            raise
        except Exception as error:  # whatever else the template's own code runs into
            return "fails", f"{type(error).__name__}: {_said(error)}"
        return "text", "".join(parts)


def _said(error):
    """Return the beginning of what an exception says; "" where it cannot say it."""
    try:
        return str(error)[:MESSAGE]
    except Exception:
        return ""


def limit_memory(size):
    """Let allocations fail that would take this process beyond `size` bytes, as far as the system can."""
    # Address space where private memory alone cannot be limited: with room for what is mapped from files.
    kinds = {"RLIMIT_DATA": size, "RLIMIT_AS": 2 * size, "RLIMIT_CORE": 0, "RLIMIT_FSIZE": 0}
    for name, most in kinds.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):
            kind = getattr(resource, name)
            _, hard = resource.getrlimit(kind)
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(kind, (most, most))


def write(kind, text):
    payload = text.encode("utf-8", "surrogatepass")
    sys.stdout.buffer.write(b"%s %d\n" % (kind.encode(), len(payload)) + payload)
    sys.stdout.buffer.flush()


def main():
    limits = json.loads(sys.argv[1])
    sys.path[:] = limits["path"]
    try:
        renderer = Renderer(make_environment(), limits["output"])
    except ImportError as error:
        write("missing", str(error))
        return
    limit_memory(limits["memory"])
    for line in sys.stdin.buffer:
        request = json.loads(line)
        # Processor time, not the clock's: no template fails on a busy machine. The signal's default ends the process.
        signal.setitimer(signal.ITIMER_PROF, limits["seconds"])
        kind, text = renderer.answer(request["template"], request["values"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        write(kind, text)


if __name__ == "__main__":
    main()
