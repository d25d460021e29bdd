"""What the grammar of a JSON schema makes of texts, a line of JSON each: {"schema", "texts", "n"} in, what it says out.

Out: {"refused": why}, or {"fits": [is each text of the grammar?], "samples": [n texts of the grammar]}. It runs with
the project's own Python; the tests that ask it have another environment.
"""

import json
import random
import sys

from llamacy.errors import LlamacyError
from llamacy.generate.json_grammar import json_schema

LONGEST = 100
CLOSING = b'"},]'


def fits(automaton, text):
    """Say whether a text is a whole one of the grammar."""
    return automaton.may_end(automaton.run(0, text.encode("utf-8", "surrogatepass")))


def samples(automaton, n):
    """Yield texts of the grammar, drawn byte by byte; those that do not come to an end are left out."""
    chance = random.Random(5)
    for _ in range(n):
        state, text = 0, bytearray()
        while len(text) < LONGEST and not (automaton.may_end(state) and chance.random() < 0.4):
            usable = [byte for byte in range(32, 127) if automaton.step(state, byte) != automaton.DEAD]
            if not usable:
                break
            ending = [byte for byte in usable if byte in CLOSING]
            text.append(chance.choice(ending if ending and chance.random() < 0.4 else usable))
            state = automaton.step(state, text[-1])
        if automaton.may_end(state):
            yield text.decode()


for line in sys.stdin:
    asked = json.loads(line)
    try:
        automaton = json_schema(asked["schema"])
        said = {
            "fits": [fits(automaton, text) for text in asked["texts"]],
            "samples": [*samples(automaton, asked["n"])],
        }
    except LlamacyError as error:
        said = {"refused": str(error)}
    print(json.dumps(said), flush=True)
