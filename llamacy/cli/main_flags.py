"""`main`'s flags, those of llama.cpp's main, llama-cli and llama-completion."""

from llamacy.cli.common import (
    add_cache_flags,
    add_engine_flags,
    add_lora_flags,
    add_model_flags,
    optional,
    whole,
)
from llamacy.cli.log_file import add_log_file_flag
from llamacy.cli.run import make_parser
from llamacy.cli.sampling_flags import add_sampling_flags
from llamacy.cli.template_flags import add_template_flags


def build_parser():
    """Return the parser of `main`'s flags."""
    parser = make_parser("main", "Continue a prompt with a language model, with or without adapters.", variables=True)
    _add_text_flags(parser.add_argument_group("text"))
    _add_chat_flags(parser.add_argument_group("chat"))
    add_model_flags(parser, ctx_size="what the prompt and -n need, at most the model's")
    optional(parser, "-b", "--batch-size", dest="batch_size", type=whole(1), metavar="N",
             help="prompt tokens computed at once, at most (default: 512)")  # fmt: skip
    parser.add_argument("-v", "--verbose", "--log-verbose", dest="verbose", action="store_true",
                        help="say on stderr what is used: model, cache, threads, sampling, tokens")  # fmt: skip
    add_log_file_flag(parser)
    add_engine_flags(parser)
    add_cache_flags(parser)
    add_lora_flags(parser)
    add_sampling_flags(parser)
    return parser


def _add_text_flags(group):
    optional(group, "-p", "--prompt", dest="prompt", metavar="TEXT",
             help="the text to continue (default: what is piped in)")  # fmt: skip
    optional(group, "-f", "--file", dest="file", metavar="FILE", help="read the prompt from this file, - = stdin")
    optional(group, "-bf", "--binary-file", dest="binary_file", metavar="FILE", help="the same, byte by byte")
    optional(group, "-n", "--n-predict", "--predict", dest="n_predict", type=whole(-2), metavar="N",
             help="tokens to make, -1 = to the end of the text or context, -2 = at most until the model's context is "
             "full (default: 128, in a chat -1)")  # fmt: skip
    optional(group, "-r", "--reverse-prompt", "--stop", dest="stop", action="append", default=[], metavar="TEXT",
             help="stop before this text (repeatable)")  # fmt: skip
    group.add_argument("--keep", dest="n_keep", type=whole(-1), default=0, metavar="N",
                       help="prompt tokens that --context-shift never drops, -1 = all")  # fmt: skip
    group.add_argument("-e", "--escape", action="store_true",
                       help=r"read \n, \t, \r, \", \', \\ and \xHH in the prompt, --stop and --in-prefix")  # fmt: skip
    group.add_argument("--no-escape", dest="escape", action="store_false", help="do not (the default)")
    group.add_argument("--no-display-prompt", action="store_true", help="print only what is new")
    group.add_argument("--display-prompt", dest="no_display_prompt", action="store_false",
                       help="print the prompt too (the default)")  # fmt: skip
    optional(group, "--prompt-cache", dest="prompt_cache", metavar="FILE",
             help="keep what was computed of the prompt in this file, and begin with what it has")  # fmt: skip
    group.add_argument("--prompt-cache-all", action="store_true", help="keep what is generated in it too")
    group.add_argument("--prompt-cache-ro", action="store_true", help="read it only")
    group.add_argument("--verbose-prompt", action="store_true", help="print the prompt's tokens on stderr")
    group.add_argument("-sp", "--special", action="store_true", help="print special tokens by name")


def _add_chat_flags(group):
    optional(group, "-cnv", "--conversation", dest="conversation", action="store_true",
             help="talk: messages from stdin (--prompt first), in the model's chat template")  # fmt: skip
    optional(group, "-no-cnv", "--no-conversation", dest="conversation", action="store_false",
             help="continue the prompt, no chat; with -i one without a template")  # fmt: skip
    group.add_argument("-i", "--interactive", action="store_true", help="the same as --conversation")
    group.add_argument("-if", "--interactive-first", action="store_true",
                       help="the same; without a template the user begins, after the prompt")  # fmt: skip
    group.add_argument("-st", "--single-turn", action="store_true",
                       help="talk for one turn: answer --prompt or the first message, and leave")  # fmt: skip
    group.add_argument("-ins", "--instruct", action="store_true",
                       help="wrap the prompt in the template that the adapter was trained with")  # fmt: skip
    optional(group, "-sys", "--system-prompt", dest="system", metavar="TEXT",
             help="talk, with this system message")  # fmt: skip
    optional(group, "-sysf", "--system-prompt-file", dest="system_file", metavar="FILE", help="the same from a file")
    add_template_flags(group, "talk in this template instead of the model's own")
    group.add_argument("-mli", "--multiline-input", action="store_true",
                       help="messages of several lines: one ends with a line that ends in \\")  # fmt: skip
    optional(group, "--in-prefix", dest="in_prefix", default="", metavar="TEXT",
             help="talk without a template: this stands before what is typed")  # fmt: skip
    optional(group, "--in-suffix", dest="in_suffix", default="", metavar="TEXT", help="and this behind it")
    group.add_argument("--in-prefix-bos", action="store_true", help="a BOS token stands before --in-prefix")
