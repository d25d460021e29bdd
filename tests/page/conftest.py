"""The page's tests need a browser: they run only when asked for by path (`make test-page`)."""

from pathlib import Path

HERE = Path(__file__).resolve().parent


def pytest_ignore_collect(collection_path, config):
    """Leave this folder out unless an argument of the run lies in it; None lets pytest decide as usual."""
    asked = (Path(config.invocation_params.dir, arg.split("::")[0]).resolve() for arg in config.args)
    return None if any(path.is_relative_to(HERE) for path in asked) else True
