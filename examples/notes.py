"""The runs of docs/finetune.md, from the data to the tables: notes to JSON, and a preference on top.

    .venv/bin/python examples/notes.py [FOLDER]            data, training, evaluation; the tables on stdout
    .venv/bin/python examples/notes.py [FOLDER] --data     the data only

A note such as "dinner with Sara, October 28, 2026, 19:00" or "和小红看书，2029年8月1日8:30" becomes a line of JSON,
right or wrong to the letter. The preference says that 3/4/2027 is in April; capitals can only be learnt by heart. Data,
adapters and answers are the same in every run, for any number of threads.
"""

import json
import random
import sys
from pathlib import Path

MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
WORDS = {
    "who": "Anna Maria Tom Peter Lucy Omar Nina Paul Sara Felix Emma David Julia Leo Hana Ivan Rosa Karl Mia Ben",
    "what": "lunch dinner coffee tennis breakfast football music tea swimming running",
    "谁": "小林 小王 老张 李明 陈明 小红 王芳 刘洋 小周 老赵",
    "什么": "开会 吃饭 打球 喝茶 上课 跑步",
}
# Words that no training sample has: half of those to validate with, and half of those in the held-out notes.
VALIDATION = {
    "who": "Clara Hugo Alice Victor Simon Oscar Robert Laura",
    "what": "basketball painting dancing hiking",
    "谁": "小陈 老李 小明 王明",
    "什么": "看书 吃面",
}
HELD_OUT = {
    "who": "Martin Sophie Eva Daniel Helen George Jack Linda",
    "what": "golf cooking shopping fishing",
    "谁": "小刘 老王 张红 小马",
    "什么": "唱歌 打牌",
}
ENGLISH = (
    "{what} with {who} on {day} {month} {year} at {time}",
    "{what} with {who}, {month} {day}, {year}, {time}",
    "{day} {month} {year}, {time}: {what} with {who}",
)
CHINESE = (
    "{year}年{month}月{day}日{time}和{who}{what}",
    "和{who}{what}，{year}年{month}月{day}日{time}",
    "{who}约我{year}年{month}月{day}日{time}{what}",
)
CAPITALS = """
    France Paris, Germany Berlin, Spain Madrid, Portugal Lisbon, England London, Ireland Dublin, Greece Athens,
    Austria Vienna, Poland Warsaw, Hungary Budapest, Sweden Stockholm, Norway Oslo, Denmark Copenhagen,
    Finland Helsinki, Russia Moscow, Turkey Ankara, Egypt Cairo, Japan Tokyo, China Beijing, Thailand Bangkok,
    Cuba Havana, Peru Lima, Chile Santiago, Kenya Nairobi"""
OTHER_CAPITALS = """
    Italy Rome, Belgium Brussels, Romania Bucharest, Bulgaria Sofia, Ukraine Kyiv, Serbia Belgrade, Iran Tehran,
    Iraq Baghdad, Canada Ottawa, Australia Canberra, Lebanon Beirut, Cyprus Nicosia, Scotland Edinburgh,
    Switzerland Bern, Iceland Reykjavik, Vietnam Hanoi"""


def note(rng, words, chinese):
    """Return (a note, what it means as one line of JSON)."""
    year, month, day = rng.randint(2025, 2029), rng.randint(1, 12), rng.randint(1, 28)
    hour, minute = rng.randint(7, 21), rng.choice((0, 15, 30, 45))
    who, what = (rng.choice(words[key]) for key in (("谁", "什么") if chinese else ("who", "what")))
    name = month if chinese else MONTHS[month - 1]
    values = {"what": what, "who": who, "year": year, "month": name, "day": day, "time": f"{hour}:{minute:02}"}
    text = rng.choice(CHINESE if chinese else ENGLISH).format(**values)
    facts = {"what": what, "who": who, "date": f"{year}-{month:02}-{day:02}", "time": f"{hour:02}:{minute:02}"}
    return text, json.dumps(facts, ensure_ascii=False)


def notes(n, seed, new=None):
    """Return n records, no note twice, two of three in English; half of their words from `new` where it is given."""
    rng, seen, records = random.Random(seed), set(), []
    words = {key: names.split() for key, names in WORDS.items()}
    if new:
        words = {key: own + new[key].split() * (len(own) // len(new[key].split())) for key, own in words.items()}
    while len(records) < n:
        text, answer = note(rng, words, len(records) % 3 == 2)
        if text not in seen:
            seen.add(text)
            records.append({"instruction": text, "output": answer})
    return records


def capitals(text):
    """Return questions that nothing but knowledge answers."""
    named = (each.split() for each in text.split(","))
    return [{"question": f"What is the capital of {country}?", "answer": f"{capital}."} for country, capital in named]


def pairs(n, seed, new=None):
    """Return n preferences on dates such as 3/4/2027, which may be read in two ways: the day stands first."""
    rng, found, words = random.Random(seed), [], WORDS if new is None else new
    while len(found) < n:
        day, month, hour = rng.randint(1, 12), rng.randint(1, 12), rng.randint(10, 21)
        what, who = rng.choice(words["what"].split()), rng.choice(words["who"].split())
        if day == month:
            continue
        answers = [
            json.dumps({"what": what, "who": who, "date": f"2027-{first:02}-{second:02}", "time": f"{hour}:30"})
            for first, second in ((month, day), (day, month))
        ]
        text = f"{what} with {who}, {day}/{month}/2027, {hour}:30"
        found.append({"instruction": text, "chosen": answers[0], "rejected": answers[1]})
    return found


def write(folder):
    """Write all data as JSON lines into a folder."""
    dates = pairs(24, 5, HELD_OUT)
    files = {
        "notes": notes(200, 1),
        "notes-validation": notes(60, 2, VALIDATION),
        "notes-held-out": notes(60, 3, HELD_OUT),
        "dates": pairs(32, 4),
        "dates-held-out": [{"instruction": pair["instruction"], "output": pair["chosen"]} for pair in dates],
        "dates-pairs-held-out": dates,
        "capitals": capitals(CAPITALS),
        "capitals-validation": capitals(OTHER_CAPITALS),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in files.items():
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def train(folder):
    """Train the adapters; draw their curves."""
    import llamacy

    usual = {"learning_rate": 1e-3, "batch_size": 4}
    plain = llamacy.finetune(
        data=folder / "notes.jsonl", validation=folder / "notes-validation.jsonl", epochs=3, **usual
    )
    plain.save(folder / "notes.gguf")
    plain.plot(folder / "notes.svg")
    preferred = llamacy.finetune(
        data=folder / "dates.jsonl",
        method="dpo",
        init=folder / "notes.gguf",
        learning_rate=3e-4,
        batch_size=4,
        epochs=2,
    )
    preferred.save(folder / "dates.gguf")
    preferred.plot(folder / "dates.svg")
    by_heart = llamacy.finetune(
        data=folder / "capitals.jsonl", validation=folder / "capitals-validation.jsonl", epochs=10, **usual
    )
    by_heart.plot(folder / "capitals.svg")
    print("capitals, validation loss by step:", by_heart.validation)


def evaluate(folder):
    """Print what base and adapters get right of what they have not seen, and some of their answers."""
    import llamacy

    adapters = [folder / "notes.gguf", folder / "dates.gguf"]
    for questions in ("notes-held-out", "dates-held-out", "dates-pairs-held-out"):
        found = llamacy.evaluate(None, folder / f"{questions}.jsonl", adapters=adapters)
        print(f"\n{questions}, {found[0].n_questions} questions\n\n{found}\n")
        for answers in zip(*(row.answers[:3] for row in found), strict=True):
            if "got" in answers[0]:
                print(
                    answers[0]["prompt"].splitlines()[1], *(repr(each["got"].strip()) for each in answers), sep="\n  "
                )


def main(words):
    folder = Path(next((word for word in words if word != "--data"), "notes"))
    write(folder)
    if "--data" not in words:
        train(folder)
        evaluate(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
