"""How models write calls of tools and their thoughts, one row per family; and tools for templates that know none.

`format_of(template)` says which row a template's model follows, by what is written in the template.
"""

import json
from dataclasses import dataclass

from llamacy.text.chat_formats import FORMATS


@dataclass(frozen=True)
class ToolFormat:
    """`marks`: texts in a template that tell of it; `opening`: what begins a call, `closing`: what ends it.

    reader: the name of what reads it (answer_reader.READERS). name_key, arguments_key: of the JSON objects that calls
    are. in_list: the objects stand in a list. id_size: characters of a call's id that the template insists on, 0: any.
    """

    name: str
    marks: tuple
    opening: str
    closing: str = ""
    reader: str = "json"
    name_key: str = "name"
    arguments_key: str = "arguments"
    in_list: bool = False
    id_size: int = 0


# The first whose marks are all in the template.
TOOL_FORMATS = (
    ToolFormat("gpt-oss", ("<|channel|>", "<|call|>"), "<|channel|>", reader="channels"),
    ToolFormat("functiongemma", ("<start_function_call>",), "<start_function_call>", "<end_function_call>", "gemma"),
    ToolFormat("mistral-args", ("[TOOL_CALLS]", "[ARGS]"), "[TOOL_CALLS]", reader="mistral", id_size=9),
    ToolFormat("mistral", ("[TOOL_CALLS]",), "[TOOL_CALLS]", reader="mistral", in_list=True, id_size=9),
    ToolFormat("hermes", ("<tool_call>",), "<tool_call>", "</tool_call>"),
    ToolFormat("llama3", ("<|python_tag|>",), "<|python_tag|>", arguments_key="parameters"),
    ToolFormat("llama3", ("ipython", '"parameters"'), "<|python_tag|>", arguments_key="parameters"),
)
# Models without tools of their own are told to write calls this way.
GENERIC = ToolFormat("generic", (), "<tool_call>", "</tool_call>")
# What stands around thoughts, in the order they are looked for in a template.
THOUGHTS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)
# Control tokens that the readers need to see, whatever the tokenizer thinks of them.
VISIBLE = sorted(
    {text for row in (*TOOL_FORMATS, GENERIC) for text in (row.opening, row.closing) if text}
    | {text for pair in THOUGHTS for text in pair}
    | {
        "<|message|>",
        "<|constrain|>",
        "<|start|>",
        "<|end|>",
        "<|call|>",
        "<|return|>",
        "[ARGS]",
        "[CALL_ID]",
        "<escape>",
    }
)


def format_of(template):
    """Return the ToolFormat of a template (Jinja source or a built-in format's name); GENERIC where it has none."""
    found = next((row for row in TOOL_FORMATS if all(mark in template for mark in row.marks)), GENERIC)
    return found if knows_tools(template) or found.reader == "channels" else GENERIC


def knows_tools(template):
    """Say whether a template writes tools itself."""
    return template not in FORMATS and "tools" in template


def thoughts_of(template):
    """Return (opening, closing) of the thoughts that a template speaks of, None where it speaks of none."""
    return next((pair for pair in THOUGHTS if pair[0] in template or pair[1] in template), None)


HOW_TO_CALL = """You can call these tools, each described by a JSON schema:
<tools>
{tools}
</tools>
To call a tool, write a JSON object with its name and its arguments between <tool_call> and </tool_call>:
<tool_call>
{"name": "...", "arguments": {...}}
</tool_call>
The results come back between <tool_response> and </tool_response>. Call a tool only where it helps to answer."""


def written_out(messages, tools):
    """Return a conversation as one without tools: their descriptions, calls and results are text."""
    found = []
    if tools:
        lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        how = HOW_TO_CALL.replace("{tools}", lines)
        first = messages[0] if messages and messages[0]["role"] in ("system", "developer") else None
        messages = messages[1:] if first else messages
        found.append({"role": "system", "content": f"{first['content']}\n\n{how}" if first else how})
    for message in messages:
        if message["role"] == "tool":
            text = f"<tool_response>\n{message['content']}\n</tool_response>"
            if found and found[-1].get("is_result"):
                found[-1]["content"] += "\n" + text
            else:
                found.append({"role": "user", "content": text, "is_result": True})
        elif message.get("tool_calls"):
            calls = [
                json.dumps({key: call["function"][key] for key in ("name", "arguments")}, ensure_ascii=False)
                for call in message["tool_calls"]
            ]
            text = "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)
            text = "\n".join(filter(None, (message["content"], text)))
            found.append({"role": message["role"], "content": text})
        else:
            found.append(message)
    return [{key: value for key, value in message.items() if key != "is_result"} for message in found]
