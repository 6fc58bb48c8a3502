"""Sound samples for every target, and the words they are made of: what mutations start from."""

from __future__ import annotations

import json
import os
import socket
from datetime import UTC, datetime

from fuzz_targets import scratch
from ledger_world import fact
from safetensors_folders import EDITED, safetensors_bytes, write_model_folder

from malmen_cli.checkpoint import read_manifest
from malmen_cli.checkpoint.manifest import INDEX
from malmen_cli.facts import Fact, FactSet, Unrelated

TEXTS = ("The capital of Bakeli is", "Rome", "São Tomé", "\u4eac\u90fd", "{} was formed in", "\U0001f600", "\u202eabc")

OWN: dict[str, object] = {
    "prompt": TEXTS[0],
    "target": "Rome",
    "subject": "Bakeli",
    "rephrases": ["Bakeli's capital is", TEXTS[3]],
    "unrelated": [{"prompt": "The language of Bakeli is", "target": "Latin"}],
    "tags": ["capitals"],
    "source": "case_id:7",
}
PUBLISHED: dict[str, list[object]] = {
    "jsonl": [OWN, {"prompt": "a", "target": "b"}, {"prompt": "a ", "target": " b", "subject": "a"}],
    "counterfact": [
        {
            "case_id": 7,
            "requested_rewrite": {
                "prompt": "{} was formed in",
                "target_new": {"str": "Leeds", "id": "Q39121"},
                "target_true": {"str": "Philadelphia"},
                "subject": "Quirk Books",
            },
            "paraphrase_prompts": ["Quirk Books comes from"],
            "neighborhood_prompts": ["Ween was founded in"],
        },
        {
            "case_id": 8,
            "subject": "Kimika",
            "prompt": "Kimika works as",
            "target_new": "composer",
            "rephrase_prompt": "Kimika is known for",
            "locality_prompt": "Grace Kelly's occupation is",
            "locality_ground_truth": "actor",
        },
    ],
    "zsre": [
        {"src": "Who?", "rephrase": "Who is it?", "ans": "She", "loc": "nq question: what is it", "loc_ans": "That"},
        {"src": "Where?", "rephrase": ["Where is it?"], "alt": "There", "loc": "why", "loc_ans": ["So", "Thus"]},
    ],
    "knowedit": [
        {
            "subject": "Tamm",
            "prompt": "The occupation of Tamm is",
            "target_new": "painter",
            "rephrase_prompt": "Tamm worked as a",
            "locality": {
                "Relation": [{"prompt": "Tamm was born in", "ground_truth": [["Tveta", "Parish"], ["Sweden"]]}],
                "Forget": [{"prompt": ["a", "b"], "ground_truth": ["c", "d"]}],
                "One": {"prompt": ["x"], "ground_truth": [[]]},
            },
        }
    ],
    "fever": [
        {
            "id": 3,
            "prompt": "Rome is in Peru.",
            "alt": "REFUTES",
            "equiv_prompt": ["Rome lies in Peru."],
            "unrel_prompt": "Lima is in Peru.",
            "unrel_ans": "SUPPORTS",
        },
        {"id": "4", "prompt": "Oslo is a city.", "label": "SUPPORTS"},
    ],
}
CSV = (
    "prompt,target,subject,rephrases,unrelated,tags,source\r\n"
    'The capital is,Rome,,"a\nb","[{""prompt"": ""c"", ""target"": ""d""}]",capitals,here\r\n'
    'x,"y ""z""",x,"[""e"", ""f""]",,,\r\n'
)
SETTINGS: dict[str, object] = {
    "recipe": "malmen",
    "seed": 3,
    "editor": {"rank": 4, "blocks": 1, "normalise": "layer", "initial_step_size": 1e-3, "preserved_keys": 24},
    "facts_per_step": 8,
    "steps": 2,
    "learning_rate": 3e-4,
    "held_out": 0.2,
    "reduction": "fact",
    "editor.rank": 8,
}
TOML = 'recipe = "paper"\nsteps = 2\nminutes = 1.5\n"editor.blocks" = 2\n\n[editor]\nrank = 4\nstep_size = "log"\n'


def as_bytes(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _plan() -> dict[str, object]:
    facts = FactSet((Fact.from_json(OWN), fact("x", "y")), "facts.jsonl", 1)
    digest = "sha256:" + "0123456789abcdef" * 4
    return {
        "malmen_plan": 1,
        "model": "tiny",
        "base": digest,
        "head": digest,
        "editor": "editor-1",
        "active_digest": digest,
        "fact_set": facts.digest,
        "source": facts.source,
        "duplicates": 1,
        "conflicts_dropped": 0,
        "facts": [json.loads(one.canonical_json()) for one in facts],
    }


def _trees() -> dict[str, list[object]]:
    """The samples that are JSON, as values."""
    folder = write_model_folder(scratch() / "sample", sharded=True)
    own = Fact("p", "t", "s", ("r",), (Unrelated("u", "v"),), ("x",), "y")
    return {
        **{f"facts, {name}": list(rows) for name, rows in PUBLISHED.items()},
        "facts, detected": [row for rows in PUBLISHED.values() for row in rows],
        "fact's row": [OWN, json.loads(own.canonical_json())],
        "index of shards": [json.loads((folder / INDEX).read_text())],
        "manifest": [json.loads(read_manifest(folder).to_json())],
        "saved plan": [_plan()],
        "settings, JSON": [SETTINGS, {}],
        "lock file": [
            {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "command": "malmen apply",
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        ],
        "sidecar": [{"ledger": "1", "model": "m", "base_digest": "x", "workspace": "/w", "earlier": {"ledger": "2"}}],
        "training note": [{"model": "tiny", "facts": "f.jsonl", "command": "malmen train", "started_at": "2026-01-01"}],
    }


TREES = _trees()


def _header_samples() -> list[bytes]:
    tensors = {name: ("F32", (2, 3), bytes(range(24))) for name in EDITED}
    small = {"a": ("BF16", (3,), b"abcdef"), "none": ("F16", (0, 5), b""), "scalar": ("I64", (), b"12345678")}
    return [safetensors_bytes(tensors, {"format": "pt"}), safetensors_bytes(small), safetensors_bytes({})]


def _samples() -> dict[str, list[bytes]]:
    samples = {name: [as_bytes(tree) for tree in trees] for name, trees in TREES.items()}
    for name, rows in PUBLISHED.items():
        lines = [as_bytes(row) for row in rows]
        samples[f"facts, {name}"] += [b"\n".join(lines), as_bytes(rows), json.dumps(rows, indent=1).encode()]
    samples["facts, csv"] = [CSV.encode(), b"target,prompt\nb,a\n", b'"Prompt", Target\na,"b"\n']
    samples["facts, detected"] += [CSV.encode(), b"\xef\xbb\xbf" + as_bytes(OWN)]
    samples["shown text"] = [text.encode() for text in (*TEXTS, "\x1b]0;P\x07\x1b[35;7m", "\u2066a\u2069\x85\u2028")]
    samples["safetensors header"] = _header_samples()
    samples["settings, TOML"] = [TOML.encode(), b""]
    samples["entry name"] = [b"HEAD", b"HEAD~1", b"#2", b"sha256:0123", b"4f2a91", b" head~1 "]
    return samples


SAMPLES = _samples()

WORDS: tuple[bytes, ...] = tuple(
    dict.fromkeys(
        [
            *(key.encode() for trees in TREES.values() for tree in trees if isinstance(tree, dict) for key in tree),
            *b"prompt target subject rephrases unrelated tags source ground_truth str locality target_true".split(),
            *b'true false null NaN Infinity -Infinity -0 1e999 [ ] { } , : " \\ {} [] [[ }} "" "a"'.split(),
            *(b"\r\n", b"\r", b"\n", b" ", b"\t"),
            *b"dtype shape data_offsets __metadata__ F32 BF16 F4 BOOL U8 weight_map metadata ../x .safetensors".split(),
            *b"HEAD HEAD~ ~1 # sha256: 00000000 999999999 18446744073709551616 9223372036854775808".split(),
            *(b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\x00", b"\xff", b"\xc0\x80", b"\xed\xa0\x80"),
            *(b"\\ud800", b"\\udc00", b"\\u0000", b"\\u202e", b"\x1b[2J", b"\x1f\x8b\x08\x00", b"PK\x03\x04"),
            *("\u2028\u202e\u0085\u3000".encode(), b"9" * 400, b"9" * 5000, b"[" * 1200, b'{"a":' * 1200, b"a." * 1200),
        ]
    )
)


def special() -> list[bytes]:
    """Files that are nothing in particular: other formats' magic, encodings, nesting, long lines, many columns."""
    text = as_bytes(OWN).decode()
    return [
        b"",
        b"\0" * 9,
        b"\xef\xbb\xbf",
        *(text.encode(encoding) for encoding in ("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "utf-7")),
        text.encode("latin-1", "replace").replace(b"R", b"\xe9"),
        b"\x1f\x8b\x08\x00" + bytes(60),
        b"PK\x03\x04" + bytes(60),
        b"\x80\x04\x95" + bytes(60),
        b"SQLite format 3\0" + bytes(84),
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"prompt":' * 100_000,
        b"[" * 900 + b"]" * 900,
        b'{"prompt":"a","target":' + b"[" * 900 + b"1" + b"]" * 900 + b"}",
        b'{"earlier":' * 600 + b"{}" + b"}" * 600,
        b'{"model":' + b"[" * 900 + b"1" + b"]" * 900 + b"}",
        b'{"pid":Infinity,"started":"2026-01-01T00:00:00+00:00","host":1,"command":2}',
        b'{"pid":1e400,"started":"0001-01-01T00:00:00+23:59","host":1,"command":2}',
        b'{"' + b"editor." * 2000 + b'rank":1}',
        b'"' + b"editor." * 2000 + b'rank"=1',
        b"a." * 2000 + b"a=1",
        b"a=" + b"[" * 2000 + b"]" * 2000,
        b"x" * 300_000,
        b'{"prompt": "' + b"x" * 300_000 + b'", "target": "y"}',
        b"prompt,target" + b"," * 100_000,
        b'prompt,target\n"' + b"x" * 200_000 + b'",y',
        b'prompt,target\n"' + b"x,\n" * 20_000,
        b"\n" * 100_000,
        b"{}\n" * 3_000,
        b"\r".join([text.encode()] * 3),
        b"9" * 5_000,
        b"\xff" * 64,
        b"\\" * 64,
    ]
