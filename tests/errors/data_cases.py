"""Bad data, one case per kind; each callable gets an empty directory and must raise the error of its golden file."""

from __future__ import annotations

import functools
import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deltaw.train.data import build, detect, load_rows, split

sys.path.insert(0, str(Path(__file__).parents[1] / "train" / "data"))
from templates_for_tests import CHATML, SHAPES
from tokenizers_for_tests import byte_tokenizer


@functools.cache
def tokenizer(eos: bool = True) -> Any:
    return byte_tokenizer(bos_token="<s>", **({"eos_token": "</s>"} if eos else {}))


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def jsonl(folder: Path, *rows: Any, name: str = "rows.jsonl") -> Path:
    return put(folder, name, "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def pair(prompt: Any = "Capital of France?", completion: Any = "Paris") -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion}


def talk(*turns: str, system: str | None = None) -> dict[str, Any]:
    first = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant")
    return {"messages": first + [{"role": roles[at % 2], "content": turn} for at, turn in enumerate(turns)]}


def make(folder: Path, path: Path, *, format: str = "auto", eos: bool = True, **options: Any) -> None:
    rows = load_rows(path, cache_dir=folder / "cache")
    options = {"max_length": 64, **options}
    build(rows, detect(rows, format=format), tokenizer(eos), cache_dir=folder / "cache", **options)


def look(path: Path, **options: Any) -> None:
    detect(load_rows(path, cache_dir=path.parent / "cache"), **options)


CASES: dict[str, Callable[[Path], Any]] = {
    # Files
    "data_missing_file": lambda tmp: (jsonl(tmp, pair(), name="train.jsonl"), load_rows(tmp / "trian.jsonl")),
    "data_unknown_suffix": lambda tmp: load_rows(put(tmp, "rows.xlsx", "x")),
    "data_empty_file": lambda tmp: load_rows(put(tmp, "rows.jsonl", "")),
    "data_only_blank_lines": lambda tmp: load_rows(put(tmp, "rows.jsonl", "\n\n \n")),
    "data_utf16": lambda tmp: load_rows(put(tmp, "rows.csv", "prompt,completion\na,b\n".encode("utf-16"))),
    "data_not_utf8": lambda tmp: (
        make(tmp, jsonl(tmp, pair()))
        or make(
            tmp,
            put(tmp, "latin.jsonl", b'{"prompt": "a", "completion": "b"}\n{"prompt": "caf\xe9", "completion": "b"}\n'),
        )
    ),
    "data_cut_gzip": lambda tmp: load_rows(
        put(tmp, "rows.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-9]), cache_dir=tmp / "cache"
    ),
    "data_json_broken": lambda tmp: load_rows(
        put(tmp, "rows.json", '[\n {"text": "a"},\n {"text": "b"}\n {"text": "c"}\n]')
    ),
    "data_json_cut_off": lambda tmp: load_rows(put(tmp, "rows.json", '[\n {"text": "a"},\n {"text": "b"},')),
    "data_json_not_rows": lambda tmp: load_rows(put(tmp, "rows.json", '["a", "b"]')),
    "data_csv_open_quote": lambda tmp: load_rows(put(tmp, "rows.csv", 'prompt,completion\na,b\n"c,d\ne,f\n')),
    "data_csv_no_header": lambda tmp: load_rows(put(tmp, "rows.csv", "1,0.5\n2,0.25\n")),
    "data_tsv_ragged": lambda tmp: make(tmp, put(tmp, "rows.tsv", "text\tlabel\na\t1\nb\nc\t0\t1\n")),
    "data_parquet_not_parquet": lambda tmp: load_rows(put(tmp, "rows.parquet", "PAR0" * 10)),
    "data_directory_not_saved": lambda tmp: (jsonl(tmp, pair(), name="train.jsonl"), load_rows(tmp)),
    "data_separator_missing": lambda tmp: build(
        rows := load_rows(put(tmp, "rows.txt", "a || b\nc\nd | e\n"), separator="||"),
        detect(rows),
        tokenizer(),
        max_length=64,
        cache_dir=tmp,
    ),
    "data_separator_with_jsonl": lambda tmp: load_rows(jsonl(tmp, pair()), separator="||"),
    # Formats
    "data_no_format_fits": lambda tmp: look(jsonl(tmp, {"Prompt": "a", "chosen": "b", "rejected": "c"})),
    "data_several_formats_fit": lambda tmp: look(jsonl(tmp, {**pair(), **talk("a", "b")})),
    "data_format_unknown": lambda tmp: look(jsonl(tmp, pair()), format="mesages"),
    "data_format_does_not_fit": lambda tmp: look(jsonl(tmp, pair()), format="alpaca"),
    "data_column_missing": lambda tmp: look(jsonl(tmp, pair()), columns={"prompt": "promt"}),
    "data_role_unknown": lambda tmp: look(jsonl(tmp, pair()), columns={"answer": "completion"}),
    "data_task_without_labels": lambda tmp: look(jsonl(tmp, pair()), task="classification"),
    "data_labels_like_answers": lambda tmp: look(
        jsonl(tmp, *({"text": f"t{n}", "label": f"answer {n}"} for n in range(40)))
    ),
    # Rows
    "data_rows_mixed": lambda tmp: make(
        tmp,
        jsonl(
            tmp,
            pair(),
            '{"prompt": "a", "completion": }',
            {"prompt": "b"},
            pair("c", None),
            pair(4),
            pair("d", "  "),
            ["e"],
            pair("f", ["g"]),
            '{"prompt": NaN, "completion": "h"}',
            pair(),
        ),
    ),
    "data_messages_broken": lambda tmp: make(
        tmp,
        jsonl(
            tmp,
            talk("a", "b"),
            {"messages": []},
            {"messages": "a"},
            talk("only the user"),
            talk("a", ""),
            {"messages": [{"role": "user", "content": "a"}, {"content": "b"}]},
            {"messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "b"}]},
        ),
    ),
    "data_sharegpt_speaker": lambda tmp: make(
        tmp,
        jsonl(
            tmp,
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gtp", "value": "b"}]},
        ),
    ),
    "data_label_unknown": lambda tmp: make(
        tmp, jsonl(tmp, {"text": "a", "label": "good"}, {"text": "b", "label": "bda"}), labels=["bad", "good"]
    ),
    "data_one_class": lambda tmp: make(tmp, jsonl(tmp, *({"text": word, "label": 1} for word in "abc"))),
    # Tokens and templates
    "data_no_end_token": lambda tmp: make(tmp, jsonl(tmp, pair()), eos=False),
    "data_end_token_unknown": lambda tmp: make(tmp, jsonl(tmp, pair()), end_token="<|endoftext|>"),
    "data_too_long": lambda tmp: make(tmp, jsonl(tmp, *(pair("why? " * n, "because " * 4) for n in range(1, 30)))),
    "data_texts_too_long": lambda tmp: make(
        tmp, jsonl(tmp, *({"text": "word " * 9 * n, "label": "ab"[n % 2]} for n in range(1, 9)))
    ),
    "data_cut_prompt_of_labels": lambda tmp: make(
        tmp, jsonl(tmp, *({"text": "a", "label": label} for label in "ab")), truncation="cut-prompt"
    ),
    "data_nothing_left": lambda tmp: make(tmp, jsonl(tmp, pair("why? " * 50)), truncation="drop"),
    "data_template_syntax": lambda tmp: make(tmp, jsonl(tmp, talk("a", "b")), template="{% for m in %}"),
    "data_template_no_system": lambda tmp: make(
        tmp, jsonl(tmp, talk("a", "b"), talk("a", "b", system="be brief")), template=SHAPES["gemma"].template
    ),
    "data_template_alternation": lambda tmp: make(
        tmp,
        jsonl(tmp, {"messages": [*talk("a")["messages"], *talk("b", "c")["messages"]]}),
        template=SHAPES["mistral"].template,
    ),
    "data_template_prompt_differs": lambda tmp: make(
        tmp, jsonl(tmp, talk("a", "b")), template=CHATML + "{% if add_generation_prompt %}<think>\n{% endif %}"
    ),
    "data_template_file_missing": lambda tmp: make(tmp, jsonl(tmp, pair()), template=str(tmp / "chat.jinja")),
    "data_option_value": lambda tmp: make(tmp, jsonl(tmp, pair()), truncation="cutprompt"),
    "data_split_too_small": lambda tmp: split(load_rows(jsonl(tmp, pair())), 0.1, 0),
}
