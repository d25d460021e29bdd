"""`import llamacy` itself: cheap, and all that it says it has is there."""

import subprocess
import sys

import pytest

import llamacy


def test_an_import_costs_nothing():
    code = "import sys, llamacy; print(sorted(n for n in sys.modules if n.startswith(('llamacy.', 'numpy'))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names():
    for name in llamacy.__all__:
        assert getattr(llamacy, name) is not None and name in dir(llamacy)
    with pytest.raises(AttributeError, match="'llamacy' has no attribute 'lod'"):
        llamacy.lod  # noqa: B018
    assert issubclass(llamacy.LlamacyError, Exception)


def test_public_functions_are_typed_and_described():
    makers = llamacy.convert, llamacy.quantize, llamacy.serve
    for function in (llamacy.load, llamacy.finetune, llamacy.evaluate, *makers):
        assert function.__doc__ and "return" in function.__annotations__, function
        wanted = function.__code__.co_varnames[: function.__code__.co_argcount + function.__code__.co_kwonlyargcount]
        assert set(wanted) <= set(function.__annotations__), function
        # every argument is explained by its name
        assert not [name for name in wanted if name not in function.__doc__], function
    methods = [value for name, value in vars(llamacy.Model).items() if callable(value) and name[0] != "_"]
    assert len(methods) > 10 and all(method.__doc__ for method in methods)
