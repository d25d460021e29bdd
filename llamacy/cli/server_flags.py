"""`server`'s flags, those of llama-server."""

import argparse
import os
import re

from llamacy.cli.common import add_cache_flags, add_engine_flags, add_lora_flags, add_model_flags
from llamacy.cli.log_file import add_log_file_flag
from llamacy.cli.run import make_parser
from llamacy.cli.sampling_flags import add_sampling_flags, sampling_values
from llamacy.cli.template_flags import add_template_flags
from llamacy.cli.values import Append, optional, real, whole
from llamacy.errors import LlamacyError, UsageError

DEFAULT_SLOTS, MAX_SLOTS = 4, 256


def build_parser():
    """Return the parser of `server`'s flags."""
    parser = make_parser(
        "server",
        "Serve a model over HTTP: llama.cpp's and OpenAI's endpoints, and a chat page at /. Variables LLAMA_ARG_NAME "
        "and LLAMA_API_KEY mean what they mean to llama-server; a flag beats its variable.",
        variables=True,
    )
    add_model_flags(parser, ctx_size="4096, at most the model's; each slot has that much")
    add_engine_flags(parser)
    add_cache_flags(parser)
    add_lora_flags(parser)
    add_sampling_flags(parser, "sampling, for requests that do not say")
    group = parser.add_argument_group("server")
    group.add_argument("--host", default="127.0.0.1",
                       help="address to listen on; 0.0.0.0 = every network; a path that ends with .sock = a Unix "
                       "socket")  # fmt: skip
    group.add_argument("--port", type=whole(0, 65535), default=8080, metavar="N", help="0 = any free one")
    optional(group, "-np", "--parallel", dest="parallel", type=slot_count, metavar="N",
             help=f"slots: requests answered at once, others wait (default and -1: {DEFAULT_SLOTS})")  # fmt: skip
    optional(group, "-b", "--batch-size", dest="batch_size", type=whole(1), metavar="N",
             help="tokens computed in one step, at most (default: 512)")  # fmt: skip
    group.add_argument("--max-queue", type=whole(1), default=256, metavar="N", help="requests that may wait for a slot")
    optional(group, "--api-key", dest="api_key", default=[], action=Append, metavar="KEY",
             help="clients must send this key as a bearer token (repeatable, or several with commas)")  # fmt: skip
    optional(group, "--api-key-file", dest="api_key_file", metavar="FILE",
             help="the same, a key a line; lines that begin with # are none")  # fmt: skip
    optional(group, "--api-prefix", dest="api_prefix", default="", type=path_prefix, metavar="PREFIX",
             help="what all paths begin with, such as /llm")  # fmt: skip
    optional(group, "--ssl-key-file", dest="ssl_key_file", metavar="FILE",
             help="serve HTTPS with this private key (PEM), and with --ssl-cert-file")  # fmt: skip
    optional(group, "--ssl-cert-file", dest="ssl_cert_file", metavar="FILE", help="the certificate, or a chain (PEM)")
    optional(group, "--allowed-hosts", dest="allowed_hosts", metavar="NAMES",
             help="names that requests may call this server by, with commas, besides addresses, localhost and names "
             "without a dot; without an --api-key others are refused where only this machine can connect")  # fmt: skip
    optional(group, "--cors-origins", dest="cors_origins", metavar="LIST",
             help="web pages that may ask, such as https://a.example,http://localhost:3000 (default: *, all; what "
             "changes the server needs a key or a page of its own)")  # fmt: skip
    group.add_argument("--cors-credentials", action="store_true", default=True,
                       help="such pages may send cookies along (the default)")  # fmt: skip
    group.add_argument("--no-cors-credentials", dest="cors_credentials", action="store_false", help="they may not")
    group.add_argument("-to", "--timeout", type=real(1), default=600, metavar="SECONDS",
                       help="how long receiving a body or sending an answer may stand still")  # fmt: skip
    optional(group, "-a", "--alias", dest="alias", metavar="NAME",
             help="the model's name in answers (default: its file's)")  # fmt: skip
    group.add_argument("-v", "--verbose", "--log-verbose", action="store_true", help="log every request on stderr")
    add_log_file_flag(group)
    _add_endpoint_flags(parser.add_argument_group("endpoints"))
    _add_request_flags(parser.add_argument_group("what requests ask for that do not say"))
    return parser


def _add_endpoint_flags(group):
    group.add_argument("--metrics", action="store_true", help="offer /metrics for Prometheus")
    group.add_argument("--slots", action="store_true", default=True, help="offer /slots (the default)")
    group.add_argument("--no-slots", "--slots-endpoint-disable", dest="slots", action="store_false",
                       help="keep what slots are doing to yourself")  # fmt: skip
    optional(group, "--slot-save-path", dest="slot_save_path", metavar="DIR",
             help="where POST /slots/ID?action=save|restore keeps what slots hold")  # fmt: skip
    group.add_argument("--props", action="store_true", help="offer POST /props")
    group.add_argument("--no-ui", "--no-webui", dest="no_webui", action="store_true", help="no chat page at /")
    group.add_argument("--ui", "--webui", dest="no_webui", action="store_false", help="a chat page (the default)")
    group.add_argument("--embedding", "--embeddings", dest="embeddings_only", action="store_true",
                       help="make embeddings only, no text")  # fmt: skip
    optional(group, "--pooling", dest="pooling", choices=["mean", "last", "cls", "none"],
             help="what /embedding makes of a text's tokens; none: a vector for each "
             "(default: as the model's file says, else mean)")  # fmt: skip
    optional(group, "--lora-dir", dest="lora_dir", metavar="DIR",
             help="adapters that POST /lora-adapters/load may load, by the names of their files")  # fmt: skip
    group.add_argument("--lora-watch", action="store_true",
                       help="load an adapter anew when its file is written, as by finetune")  # fmt: skip
    group.add_argument("--lora-init-without-apply", action="store_true",
                       help="adapters have scale 0 until POST /lora-adapters or a request says otherwise")  # fmt: skip


def _add_request_flags(group):
    optional(group, "-n", "--n-predict", "--predict", dest="n_predict", type=whole(-1), metavar="N",
             help="tokens to make, -1 = to the end of the text or context (default: -1)")  # fmt: skip
    optional(group, "--keep", dest="n_keep", type=whole(-1), metavar="N",
             help="prompt tokens that --context-shift never drops, -1 = all (default: 0)")  # fmt: skip
    optional(group, "-r", "--reverse-prompt", "--stop", dest="stop", action="append", metavar="TEXT",
             help="stop before this text (repeatable)")  # fmt: skip
    optional(group, "--cache-prompt", dest="cache_prompt", action="store_true",
             help="use what a slot's cache holds of the prompt (the default)")  # fmt: skip
    optional(group, "--no-cache-prompt", dest="cache_prompt", action="store_false", help="compute it anew")
    group.add_argument("--embd-normalize", type=whole(-1, 64), default=2, metavar="N",
                       help="scale of embeddings: -1 as they are, 0 16-bit integers, 1, 2, ... that norm")  # fmt: skip
    group.add_argument("-sp", "--special", action="store_true", help="special tokens are part of the text, by name")
    add_template_flags(
        group,
        "chat with this template (default: the model's own)",
        "none = thoughts stay in the text; auto, deepseek = they are `reasoning_content` (default: auto)",
        ("none", "auto", "deepseek"),
    )
    optional(group, "--prefill-assistant", dest="prefill_assistant", action="store_true",
             help="a chat that ends with a message of the assistant's goes on with it (the default)")  # fmt: skip
    optional(group, "--no-prefill-assistant", dest="prefill_assistant", action="store_false", help="it is answered")


def slot_count(text):
    """Parse a number of slots; -1 leaves it to the server, as in llama.cpp."""
    return -1 if text == "-1" else whole(1, MAX_SLOTS)(text)


def slots_of(args):
    """Return how many slots the flags ask for."""
    return DEFAULT_SLOTS if args.parallel in (None, -1) else args.parallel


def check_folders(args):
    """Refuse folders that are not there."""
    for name in ("lora_dir", "slot_save_path"):
        path = getattr(args, name)
        if path is not None and not os.path.isdir(path):
            raise UsageError(f"--{name.replace('_', '-')}: wanted a folder, got {path!r}")


def path_prefix(text):
    """Parse the beginning of all paths: none, or one or more /name."""
    prefix = text.rstrip("/")
    if prefix and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", prefix):
        raise argparse.ArgumentTypeError(f"wanted a path such as /llm, got {text!r}")
    return prefix


def origins_of(args):
    """Return the origins whose pages may ask, None for all."""
    given = [origin.strip().lower().rstrip("/") for origin in (args.cors_origins or "*").split(",")]
    wrong = [origin for origin in given if origin not in ("*", "null") and "://" not in origin]
    if wrong:
        raise UsageError(f"--cors-origins: wanted origins such as https://a.example, got {wrong[0]!r:.60}")
    return None if "*" in given else tuple(given)


def defaults_of(args):
    """Return what the flags say of requests, by the names of the server's OPTIONS."""
    names = ("n_predict", "n_keep", "stop", "cache_prompt")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    return sampling_values(args) | given | ({"stop": tuple(filter(None, args.stop))} if args.stop else {})


def read_keys(args):
    """Return the API keys of the flags; an empty one or an empty file is an error, not an open door."""
    keys = [key for keys in args.api_key for key in keys.split(",")]
    if args.api_key_file is not None:
        with open(args.api_key_file, encoding="utf-8", errors="surrogateescape") as file:
            found = [line.strip() for line in file if line.strip() and not line.startswith("#")]
        if not found:
            raise LlamacyError(f"--api-key-file {args.api_key_file}: wanted a key a line, got none")
        keys += found
    if not all(key.strip() for key in keys):
        raise UsageError("--api-key: wanted a key, got an empty one")
    return tuple(keys)
