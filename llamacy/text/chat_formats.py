"""Built-in chat formats, one row each: what stands around a system, a user and an assistant message.

For models whose file has no template, for `--chat-template NAME`, and where Jinja is not installed. The rows say what
llama.cpp's formats of the same name say (llama-chat.cpp), but llama2 as Meta documents it.
"""

from typing import NamedTuple


class ChatFormat(NamedTuple):
    """(before, after) each kind of message, with {bos} and {eos} for the tokens' texts.

    opening: what asks for an answer. joined: the system message goes inside the next user message. default: the system
    message where there is none. strip: white space around messages is dropped.
    """

    system: tuple
    user: tuple
    assistant: tuple
    opening: str = ""
    joined: bool = False
    default: str = ""
    strip: bool = False

    def render(self, turns, bos, eos, add_generation_prompt):
        """Return [(role, text), ...] as one text. The first BOS is left for the tokenizer to add."""
        if self.default and not any(role == "system" for role, _ in turns):
            turns = [("system", self.default), *turns]
        parts, waiting = [], ""
        for role, text in turns:
            before, after = (mark.replace("{bos}", bos).replace("{eos}", eos) for mark in getattr(self, role))
            text = text.strip() if self.strip else text
            if role == "system" and self.joined:
                waiting += before + text + after
                continue
            if role == "user":
                text, waiting = waiting + text, ""
            parts.append(before + text + after)
        whole = "".join(parts) + waiting + (self.opening if add_generation_prompt else "")
        return whole.removeprefix(bos) if bos else whole


def _tagged(tag, after, opening, **more):
    """Return the format whose messages differ by the role's name alone: `tag` with {role}, the text, `after`."""
    names = more.pop("names", {})
    marks = {role: (tag.replace("{role}", names.get(role, role)), after) for role in ("system", "user", "assistant")}
    return ChatFormat(**marks, opening=opening, **more)


FORMATS = {
    "chatml": _tagged("<|im_start|>{role}\n", "<|im_end|>\n", "<|im_start|>assistant\n"),
    "llama2": ChatFormat(
        ("<<SYS>>\n", "\n<</SYS>>\n\n"), ("{bos}[INST] ", " [/INST]"), (" ", " {eos}"), joined=True, strip=True
    ),
    "llama3": _tagged(
        "<|start_header_id|>{role}<|end_header_id|>\n\n",
        "<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        strip=True,
    ),
    "gemma": _tagged(
        "<start_of_turn>{role}\n",
        "<end_of_turn>\n",
        "<start_of_turn>model\n",
        names={"assistant": "model"},
        strip=True,
    )._replace(system=("", "\n\n"), joined=True),
    "mistral-v1": ChatFormat(("", "\n\n"), (" [INST] ", " [/INST]"), (" ", "{eos}"), joined=True),
    "mistral-v3": ChatFormat(("", "\n\n"), ("[INST] ", "[/INST]"), (" ", "{eos}"), joined=True),
    "mistral-v3-tekken": ChatFormat(("", "\n\n"), ("[INST]", "[/INST]"), ("", "{eos}"), joined=True),
    "mistral-v7": ChatFormat(("[SYSTEM_PROMPT] ", "[/SYSTEM_PROMPT]"), ("[INST] ", "[/INST]"), (" ", "{eos}")),
    "mistral-v7-tekken": ChatFormat(("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"), ("[INST]", "[/INST]"), ("", "{eos}")),
    "phi3": _tagged("<|{role}|>\n", "<|end|>\n", "<|assistant|>\n"),
    "phi4": _tagged("<|im_start|>{role}<|im_sep|>", "<|im_end|>", "<|im_start|>assistant<|im_sep|>"),
    "falcon3": _tagged("<|{role}|>\n", "\n", "<|assistant|>\n"),
    "zephyr": _tagged("<|{role}|>\n", "<|endoftext|>\n", "<|assistant|>\n"),
    "granite": _tagged(
        "<|start_of_role|>{role}<|end_of_role|>", "<|end_of_text|>\n", "<|start_of_role|>assistant<|end_of_role|>"
    ),
    "vicuna": ChatFormat(("", "\n\n"), ("USER: ", "\n"), ("ASSISTANT: ", "{eos}\n"), "ASSISTANT:"),
    "openchat": ChatFormat(
        ("", "<|end_of_turn|>"),
        ("GPT4 Correct User: ", "<|end_of_turn|>"),
        ("GPT4 Correct Assistant: ", "<|end_of_turn|>"),
        "GPT4 Correct Assistant:",
    ),
    "command-r": _tagged(
        "<|START_OF_TURN_TOKEN|><|{role}_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>",
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        names={"system": "SYSTEM", "user": "USER", "assistant": "CHATBOT"},
        strip=True,
    ),
    "deepseek": ChatFormat(
        ("", ""), ("### Instruction:\n", "\n"), ("### Response:\n", "\n<|EOT|>\n"), "### Response:\n"
    ),
    "deepseek3": ChatFormat(
        ("", "\n\n"),
        ("<\uff5cUser\uff5c>", ""),
        ("<\uff5cAssistant\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
        "<\uff5cAssistant\uff5c>",
    ),
    # What finetune makes of instruction data, and Stanford Alpaca's own.
    "instruct": ChatFormat(
        ("", "\n\n"), ("### Instruction:\n", "\n"), ("### Response:\n", "{eos}\n"), "### Response:\n"
    ),
    "alpaca": ChatFormat(
        ("", "\n\n"),
        ("### Instruction:\n", "\n\n"),
        ("### Response:\n", "{eos}\n\n"),
        "### Response:\n",
        default="Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.",
    ),
}
