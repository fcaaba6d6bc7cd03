"""Bad task files and names, one case per kind; each callable gets an empty directory."""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "train" / "data"))
import task_files as tiny
from tokenizers_for_tests import byte_tokenizer

from deltaw.cli import _run
from deltaw.train.data import build
from deltaw.train.data.tasks import Query, parse_sql, read_task, references, to_sql
from deltaw.train.data.tasks.synthetic import synthesize
from deltaw.train.settings import from_values
from deltaw.train.tasked import task_source

Case = Callable[[Path], Any]


def task(name: str, file: str, content: Any, split: str = "train") -> Case:
    """A task whose file is wrong in itself."""

    def case(tmp: Path) -> None:
        tiny.put(tmp / "data", file, content)
        read_task(name, tmp / "data", split, cache_dir=tmp / "cache")

    return case


def rows(name: str, file: str, content: Any, split: str = "train", also: Any = None) -> Case:
    """A task with broken rows, found when they are tokenized."""

    def case(tmp: Path) -> None:
        tiny.put(tmp / "data", file, content)
        for other, text in (also or {}).items():
            tiny.put(tmp / "data", other, text)
        found = read_task(name, tmp / "data", split, cache_dir=tmp / "cache")
        base = byte_tokenizer(bos_token="<s>", eos_token="</s>")
        build(found, found.format, base, max_length=64, cache_dir=tmp / "cache", labels=found.task.labels or None)

    return case


def line(*words: str) -> Case:
    """A command line beside a directory of E2E and one of SST-2; ``{tmp}`` in a word is the directory."""

    def case(tmp: Path) -> None:
        os.environ["DELTAW_CACHE"] = str(tmp / "cache")
        for split in ("train", "valid"):
            tiny.put(tmp / "e2e", f"{split}.txt", tiny.E2E_TEXT)
            tiny.glue(tmp / "SST-2", "sst2", split.replace("valid", "dev"))
        byte_tokenizer(bos_token="<s>", eos_token="</s>").save_pretrained(tmp / "base")
        _run([word.replace("{tmp}", str(tmp)) for word in words])

    return case


def cut(text: str, share: float = 0.6) -> str:
    return text[: int(len(text) * share)]


def cut_gzip(tmp: Path) -> None:
    tiny.put(tmp / "data", "train.txt.gz", gzip.compress(tiny.E2E_TEXT.encode() * 50)[:-20])
    read_task("e2e", tmp / "data", cache_dir=tmp / "cache")


def cut_archive(tmp: Path) -> None:
    tiny.put(tmp / "in", "dev/1/a.xml", tiny.WEBNLG_XML * 40 + os.urandom(50_000).hex())
    archive = tiny.packed(tmp / "webnlg.tar.gz", tmp / "in", "webnlg")
    archive.write_bytes(archive.read_bytes()[:20_000])
    read_task("webnlg", archive, "valid", cache_dir=tmp / "cache")


def empty_reference(tmp: Path) -> None:
    tiny.put(tmp / "data", "test.json", [{**tiny.DART_JSON[0], "annotations": [{"source": "x", "text": " "}]}])
    references("dart", tmp / "data", cache_dir=tmp / "cache")


def whole_instead_of_subset(tmp: Path) -> None:
    tiny.put(tmp / "data", "MNLI_9k/train.json", tiny.SUBSET)
    read_task("mnli", tmp / "data", cache_dir=tmp / "cache")


def other_task(tmp: Path) -> None:
    tiny.glue(tmp / "data", "sst2")
    read_task("rte", tmp / "data", cache_dir=tmp / "cache")


def no_such_validation(tmp: Path) -> None:
    tiny.glue(tmp, "sst2")
    task_source(
        from_values(
            {
                "model": {"path": "m", "task": "sst2"},
                "data": {"path": str(tmp), "valid": "SST-2/dev.tsv", "cache_dir": str(tmp / "cache")},
            }
        )
    )


def stand_in_exists(tmp: Path) -> None:
    synthesize("samsum", tmp)


CHECK = ("data", "check", "--model", "{tmp}/base", "--data", "{tmp}")
TRAIN = ("train", "--model", "{tmp}/base", "--data", "{tmp}")
WEBNLG_OTHER = {"entries": [{"1": {"category": "City", "lexicalisations": []}}]}
QUESTION = json.dumps({**tiny.QUESTIONS[0], "sql": {"sel": 9, "agg": 0, "conds": []}}) + "\n"

CASES: dict[str, Case] = {
    "tasks_unknown": lambda tmp: read_task("e3e", tmp),
    "tasks_split_unknown": lambda tmp: read_task("e2e", tmp, "tset"),
    "tasks_split_of_glue": lambda tmp: read_task("sst2", tmp, "test"),
    "tasks_absent": lambda tmp: read_task("webnlg", tmp, "test"),
    "tasks_absent_directory": lambda tmp: read_task("e2e", tmp / "nowhere"),
    "tasks_not_a_directory": lambda tmp: read_task("e2e", tiny.put(tmp, "train.csv", "a")),
    "tasks_subset_unnamed": whole_instead_of_subset,
    "tasks_of_another": other_task,
    "tasks_e2e_separator": rows("e2e", "train.txt", tiny.E2E_TEXT + "name : Cotto | Type : pub\n"),
    "tasks_e2e_two_separators": rows("e2e", "train.txt", tiny.E2E_TEXT + "name : A||b||c\nname - A||b\n"),
    "tasks_e2e_empty": rows("e2e", "train.txt", tiny.E2E_TEXT + "name : Cotto||\n"),
    "tasks_e2e_csv_columns": task("e2e", "trainset.csv", "mr,text\na,b\n"),
    "tasks_e2e_csv_record": rows("e2e", "trainset.csv", 'mr,ref\n"name[Cotto], eatType(pub)",A pub.\n"",x\n'),
    "tasks_e2e_gzip_cut": cut_gzip,
    "tasks_xml_cut": task("webnlg", "train/1/a.xml", cut(tiny.WEBNLG_XML)),
    "tasks_xml_other": task("dart", "train.xml", "<records>\n<record/>\n</records>\n"),
    "tasks_xml_doctype": task("dart", "train.xml", '<!DOCTYPE a [<!ENTITY b "c">]>\n<benchmark/>'),
    "tasks_xml_triple": rows("dart", "train.xml", tiny.DART_XML.replace("JOINED | 1973", "JOINED", 1)),
    "tasks_xml_triples_none": rows("webnlg", "train/1/a.xml", tiny.WEBNLG_XML.replace("mtriple", "triple")),
    "tasks_json_cut": task("dart", "train.json", cut(json.dumps(tiny.DART_JSON, indent=1))),
    "tasks_json_other": rows("dart", "train.json", [{"triples": [], "text": "a"}]),
    "tasks_webnlg_json_other": rows("webnlg", "train.json", WEBNLG_OTHER),
    "tasks_archive_cut": cut_archive,
    "tasks_reference_empty": empty_reference,
    "tasks_tsv_fields": rows("rte", "train.tsv", tiny.GLUE["rte"][1] + "2\tIt rains.\tentailment\n"),
    "tasks_tsv_label": rows("rte", "train.tsv", tiny.GLUE["rte"][1] + "2\tIt rains.\tIt pours.\tperhaps\n"),
    "tasks_tsv_score": rows("stsb", "train.tsv", tiny.GLUE["stsb"][1].replace("0.250", "7.5").replace("5.000", "high")),
    "tasks_cola_header": task("cola", "train.tsv", "source\tlabel\ttext\ngj04\t1\tThey sang.\n"),
    "tasks_subset_label": rows("mnli_9k", "train.json", {"0": {**tiny.SUBSET["0"], "label": "maybe"}}),
    "tasks_draw_too_few": task("mnli_100", "train.tsv", tiny.GLUE["mnli"][1]),
    "tasks_wikisql_tables_lacking": task("wikisql", "train.jsonl", tiny.jsonl(tiny.QUESTIONS)),
    "tasks_wikisql_table_broken": rows(
        "wikisql", "train.jsonl", tiny.jsonl(tiny.QUESTIONS), also={"train.tables.jsonl": '{"id": "1-1"}\n'}
    ),
    "tasks_wikisql_rows": rows(
        "wikisql",
        "train.jsonl",
        QUESTION + tiny.jsonl([{**tiny.QUESTIONS[0], "table_id": "1-9"}, {"a": 1}]),
        also={"train.tables.jsonl": tiny.jsonl(tiny.TABLES)},
    ),
    "tasks_wikisql_sql": rows("wikisql", "wikisql.json", [{**tiny.TEXT2SQL[0], "sql": ["SELECT * FROM t"]}]),
    "tasks_samsum_rows": rows("samsum", "train.json", [{"id": "1", "dialogue": "", "summary": "a"}, {"id": "2"}]),
    "tasks_sql_text": lambda tmp: parse_sql('SELECT "No." FROM players', ["No."]),
    "tasks_sql_column": lambda tmp: parse_sql('SELECT "Nr." FROM table', ["Player", "No."]),
    "tasks_sql_position": lambda tmp: to_sql(Query(select=4), ["Player", "No."]),
    "tasks_sql_dict": lambda tmp: Query.from_dict({"sel": 0, "agg": 7, "conds": []}),
    "tasks_synthetic_exists": stand_in_exists,
    "tasks_synthetic_drawn": lambda tmp: synthesize("mnli_100", tmp / "new"),
    "tasks_flag_unknown": line(*TRAIN, "--task", "e3e"),
    "tasks_flag_format": line(*CHECK, "--task", "e2e", "--format", "text"),
    "tasks_flag_column": line(*CHECK, "--task", "sst2", "--column", "text=sentence"),
    "tasks_flag_valid": no_such_validation,
    "tasks_flag_split_of_file": line(
        "data", "show", "--model", "{tmp}/base", "--data", "{tmp}/SST-2/train.tsv", "--split", "valid"
    ),
    "tasks_flag_seed_unread": line(
        "data", "check", "--model", "{tmp}/base", "--data", "{tmp}", "--task", "e2e", "--seed", "3"
    ),
    "tasks_paper_directory": line("paper", "tasks", "--data", "{tmp}/nowhere"),
    "tasks_paper_seed": line("paper", "tasks", "--seed", "3"),
    "tasks_paper_stand_in_task": line("paper", "tasks", "--synthesize", "{tmp}/new"),
}
