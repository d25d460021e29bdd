"""`LLAMA_ARG_*`: flags in environment variables, with the names and meanings that llama-server gives them.

A variable counts as its flag in front of the command line, so that flags given there win.
"""

import argparse

from llamacy.cli.llama_cpp_flags import REASONS

PREFIX = "LLAMA_ARG_"
ON, OFF = ("1", "on", "true", "enabled"), ("0", "off", "false", "disabled")
# variables whose name is not their flag's in capitals
NAMES = {
    "LLAMA_API_KEY": "--api-key",
    "LLAMA_ARG_BATCH": "--batch-size",
    "LLAMA_ARG_CHECKPOINT_MIN_SPACING_NT": "--checkpoint-min-step",
    "LLAMA_ARG_ENDPOINT_METRICS": "--metrics",
    "LLAMA_ARG_ENDPOINT_PROPS": "--props",
    "LLAMA_ARG_ENDPOINT_SLOTS": "--slots",
    "LLAMA_ARG_LOG_VERBOSITY": "--log-verbosity",
    "LLAMA_ARG_N_PARALLEL": "--parallel",
    "LLAMA_ARG_ROPE_SCALING_TYPE": "--rope-scaling",
    "LLAMA_ARG_SPEC_DRAFT_HF_REPO": "--spec-draft-hf",
    "LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_K": "--cache-type-k-draft",
    "LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_V": "--cache-type-v-draft",
    "LLAMA_ARG_STATIC_PATH": "--path",
    "LLAMA_ARG_THINK": "--reasoning-format",
    "LLAMA_ARG_THINK_BUDGET": "--reasoning-budget",
    "LLAMA_ARG_UBATCH": "--ubatch-size",
}
# flags of which one in the command line takes the place of the other's variable
RIVALS = {"--chat-template": "--chat-template-file", "--chat-template-file": "--chat-template"}


class Environment:
    """What the variables say to one command.

    actions: argparse's actions by flag. ignored: flags that change nothing here.
    """

    def __init__(self, actions, ignored):
        self._actions, self._ignored = actions, ignored

    def read(self, variables, words):
        """Return (words for the command line, variables without effect, unknown ones), for `variables` {name: value}.

        words: those of the command line. ValueError, one line with the variable's name, for a value that is wrong.
        """
        found, ignored, unknown = [], [], []
        for name, value in sorted(variables.items()):
            if not (name.startswith(PREFIX) or name in NAMES) or value == "":
                continue
            flag = flag_of(name)
            if flag in self._actions:
                found += [] if RIVALS.get(flag) in words else self._words(name, flag, value)
            elif flag in self._ignored:
                ignored.append(f"{name}={value}")
            elif flag not in REASONS:
                unknown.append(name)
            elif value.lower() not in OFF:
                raise ValueError(f"{name}: {REASONS[flag]}")
        return found, ignored, unknown

    def _words(self, name, flag, value):
        """Return the words that a variable stands for, none for a switch that is off."""
        action = self._actions[flag]
        if action.nargs == 0:
            if name.startswith(PREFIX + "NO_"):
                return [flag]  # whatever it says
            if value.lower() not in ON + OFF:
                raise ValueError(f"{name}: wanted one of {', '.join(ON + OFF)}, got {value!r}")
            contrary = f"--no-{flag[2:]}"
            return [flag] if value.lower() in ON else [contrary] if contrary in self._actions else []
        try:
            parsed = action.type(value) if action.type else value
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"{name}: {error}") from None
        except ValueError:
            raise ValueError(f"{name}: wanted a value for {flag}, got {value!r}") from None
        if action.choices is not None and parsed not in action.choices:
            raise ValueError(f"{name}: wanted one of {', '.join(map(str, action.choices))}, got {value!r}")
        return [f"{flag}={value}"]


def flag_of(name):
    """Return the flag that a variable stands for."""
    return NAMES.get(name) or "--" + name.removeprefix(PREFIX).lower().replace("_", "-")
