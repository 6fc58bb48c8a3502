"""Answers of several tokens: MQuAKE's questions on cf-gpt2, half of them to train on, half to score.

    python tests/benchmarks/multi_token.py --shared ../shared --minutes 5 --seeds 0 1 2 --jobs 2 --out multi_token.jsonl

No subject, no prompt and no unrelated prompt is in both halves. The table is that of `locality.py`, with the share of
targets by their number of tokens. cf-gpt2 knows none of the answers to the set's unrelated prompts: what must not
change is what it says instead, which often has no end of its own. `--unrelated counterfact` gives either half unrelated
prompts of CounterFact, whose answers it knows.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import locality
from method_comparison import compare, options_of
from method_runs import Contender, Record, Task, draws_of
from tokenizers import Tokenizer

Pair = tuple[str, str]
_END = {"end_of_text": True}

VARIANTS: Mapping[str, Contender] = {
    "defaults": Contender("malmen's defaults, chosen on CounterFact"),
    "end-of-text": Contender("malmen's defaults, the end of the answer supervised", settings=_END),
    "saturation-0": locality.VARIANTS["saturation-0"],
    "paper": locality.VARIANTS["paper"],
    "mend": locality.VARIANTS["mend"],
    "mend-end-of-text": Contender("as mend, the end of the answer supervised", "mend", settings=_END),
}
METHODS: Mapping[str, Contender] = {
    **locality.METHODS,
    **{
        f"{name}-end-of-text": replace(
            one, about=f"as {name}, the end of the answer supervised", settings={**one.settings, **_END}
        )
        for name, one in locality.METHODS.items()
    },
}


def subject_of(question: str, rephrase: str) -> str:
    """The longest run of words in both, but for the first word, from its first name or number to its last; or ''."""
    words, others = (
        [word.strip("?,.!\"'").removesuffix("'s") for word in text.split()] for text in (question, rephrase)
    )
    best = ""
    for start in range(1, len(words)):
        for end in range(start + 1, len(words) + 1):
            run = words[start:end]
            names = run[0][:1], run[-1][:1]
            found = all(name.isupper() or name.isdigit() for name in names)
            if found and any(others[i : i + len(run)] == run for i in range(len(others))):
                best = max(best, " ".join(run), key=len)
    return best if best in question else ""


def halves(
    records: Sequence[Mapping[str, str]], known: tuple[Sequence[Pair], Sequence[Pair]] | None, seed: int = 0
) -> tuple[list[Record], list[Record]]:
    """Facts to train on and to score, by subject; each half has unrelated prompts of its own.

    Args:
        known: unrelated prompts with their answers for either half, to be drawn instead of the set's own. Those were
            paired with its facts at random; such as fall into the other half are replaced at random too.
    """
    draw = random.Random(seed)
    subjects = [subject_of(record["src"], record["rephrase"]) for record in records]
    named = sorted({subject for subject in subjects if subject})
    draw.shuffle(named)
    training = set(named[: len(named) // 2])
    own = sorted({(record["loc"], record["loc_ans"]) for record in records})
    prompts = sorted({prompt for prompt, _ in own})
    draw.shuffle(prompts)
    first = set(prompts[: len(prompts) // 2])
    pools = known or tuple([pair for pair in own if (pair[0] in first) == of_training] for of_training in (True, False))
    found: tuple[list[Record], list[Record]] = ([], [])
    for record, subject in zip(records, subjects, strict=True):
        if not subject:
            continue
        of_training, pair = subject in training, (record["loc"], record["loc_ans"])
        half = 0 if of_training else 1
        if known or (pair[0] in first) != of_training:
            pair = draw.choice(pools[half])
        found[half].append(
            {
                "prompt": record["src"],
                "target": record["ans"],
                "subject": subject,
                "rephrases": [record["rephrase"]],
                "unrelated": [{"prompt": pair[0], "target": pair[1]}],
            }
        )
    for facts in found:
        draw.shuffle(facts)
    return found


def task(shared: Path, sizes: list[int], draws: int, unrelated: str) -> Task:
    records = json.loads((shared / "data" / "zsre" / "mquake_questions_train.json").read_text("utf-8"))
    counterfact = shared / "data" / "counterfact"
    scoring = _known(counterfact / "dev.json")
    taken = {prompt for prompt, _ in scoring}
    known = ([pair for pair in _known(counterfact / "train.json") if pair[0] not in taken], scoring)
    training, scored = halves(records, known if unrelated == "counterfact" else None)
    lengths = _lengths(shared / "models" / "cf-gpt2" / "tokenizer.json", scored)
    print(f"{len(training):,} facts to train on, {len(scored):,} to draw those to score from.")
    print(f"Tokens of a target: {lengths}\n")
    return Task(
        name=f"MQuAKE's questions on cf-gpt2, unrelated prompts: {unrelated}",
        checkpoint=shared / "models" / "cf-gpt2",
        training=training,
        draws=draws_of(scored, sizes, draws),
        text=shared / "data" / "text" / "wikitext2_test.txt",
    )


def _known(file: Path) -> list[Pair]:
    """Unrelated prompts of CounterFact, whose answers cf-gpt2 knows."""
    return [
        (record["locality_prompt"], record["locality_ground_truth"]) for record in json.loads(file.read_text("utf-8"))
    ]


def _lengths(tokenizer: Path, facts: Sequence[Record]) -> str:
    read = Tokenizer.from_file(str(tokenizer))
    lengths = [len(read.encode(" " + fact["target"]).ids) for fact in facts]
    counts = Counter(min(length, 6) for length in lengths)
    shares = (f"{n}{' or more' if n == 6 else ''} {counts[n] / len(lengths):.0%}" for n in sorted(counts))
    return f"{', '.join(shares)}; {sum(lengths) / len(lengths):.1f} on average"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options_of(parser, list(VARIANTS), list(METHODS))
    parser.add_argument(
        "--unrelated",
        choices=["own", "counterfact"],
        default="own",
        help="the set's own unrelated prompts, which cf-gpt2 cannot answer, or CounterFact's, which it can",
    )
    options = parser.parse_args()
    compare(
        task(options.shared.resolve(), options.sizes, options.draws, options.unrelated),
        {**VARIANTS, **METHODS},
        options,
    )


if __name__ == "__main__":
    main()
