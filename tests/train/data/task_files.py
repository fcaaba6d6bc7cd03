"""A few examples of every layout that a task of the paper lies in, as its authors write it."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

E2E_TEXT = (
    "name : Cotto | Type : pub | near : Café Sol||Cotto is a pub near Café Sol . \n"
    "name : Cotto | Type : pub | near : Café Sol||Near Café Sol is Cotto , a pub . \n"
    "name : Loch | price : cheap||Loch is cheap . \n"
)
E2E_CSV = (
    "mr,ref\n"
    '"name[Cotto], eatType[pub], near[Café Sol]","Cotto is a pub, near Café Sol."\n'
    '"name[Loch], priceRange[£20-25], familyFriendly[no], customer rating[5 out of 5]",'
    '"Loch says ""no children"".\nIt costs £20-25."\n'
)
WEBNLG_XML = """<?xml version="1.0" encoding="UTF-8"?>
<benchmark>
  <entries>
    <entry category="Airport" eid="Id1" size="1">
      <originaltripleset>
        <otriple>Aarhus_Airport | city | Aarhus@en</otriple>
      </originaltripleset>
      <modifiedtripleset>
        <mtriple>Aarhus_Airport | cityServed | "Aarhus, Denmark"</mtriple>
      </modifiedtripleset>
      <lex comment="good" lid="Id1">Aarhus Airport serves Aarhus &amp; more.</lex>
      <lex comment="toFix" lid="Id2">Aarhus airport the serves.</lex>
      <lex comment="good" lid="Id3">The airport of Aarhus is Aarhus Airport.</lex>
    </entry>
    <entry category="Artist" eid="Id2" size="2">
      <modifiedtripleset>
        <mtriple>Ana | plays | Cello</mtriple>
        <mtriple>Ana | bornIn | Lima</mtriple>
      </modifiedtripleset>
      <lex comment="good" lid="Id1">Ana of Lima plays the cello.</lex>
    </entry>
  </entries>
</benchmark>
"""
WEBNLG_JSON: dict[str, Any] = {
    "entries": [
        {"1": {
            "category": "Airport", "size": "1", "xml_id": "Id1",
            "modifiedtripleset": [
                {"subject": "Aarhus_Airport", "property": "cityServed", "object": '"Aarhus, Denmark"'}
            ],
            "lexicalisations": [
                {"comment": "good", "lang": "", "lex": "Aarhus Airport serves Aarhus & more.", "xml_id": "Id1"},
                {"comment": "toFix", "lang": "", "lex": "Aarhus airport the serves.", "xml_id": "Id2"},
                {"comment": "good", "lang": "", "lex": "The airport of Aarhus is Aarhus Airport.", "xml_id": "Id3"},
            ],
        }},
        {"2": {
            "category": "Artist", "size": "2", "xml_id": "Id2",
            "modifiedtripleset": [
                {"subject": "Ana", "property": "plays", "object": "Cello"},
                {"subject": "Ana", "property": "bornIn", "object": "Lima"},
            ],
            "lexicalisations": [
                {"comment": "good", "lang": "", "lex": "Ana of Lima plays the cello.", "xml_id": "Id1"}
            ],
        }},
    ]
}  # fmt: skip
DART_JSON: list[dict[str, Any]] = [
    {
        "tripleset": [["Mars Hill", "JOINED", "1973"], ["[TABLECONTEXT]", "[TITLE]", "Schools"]],
        "subtree_was_extended": True,
        "annotations": [
            {"source": "WikiSQL_decl_sents", "text": "Mars Hill joined in 1973."},
            {"source": "WikiSQL_lily", "text": "In 1973 Mars Hill joined."},
        ],
    },
    {
        "tripleset": [["Mars Hill", "JOINED", "1973"], ["[TABLECONTEXT]", "[TITLE]", "Schools"]],
        "subtree_was_extended": False,
        "annotations": [{"source": "WikiSQL_lily", "text": "1973 was when Mars Hill joined."}],
    },
]
DART_XML = """<benchmark>
  <entries>
    <entry category="MISC" eid="Id1" size="2">
      <modifiedtripleset>
        <mtriple>Mars Hill | JOINED | 1973</mtriple>
        <mtriple>[TABLECONTEXT] | [TITLE] | Schools</mtriple>
      </modifiedtripleset>
      <lex comment="WikiSQL_decl_sents" lid="Id1">Mars Hill joined in 1973.</lex>
      <lex comment="WikiSQL_lily" lid="Id2">In 1973 Mars Hill joined.</lex>
    </entry>
    <entry category="MISC" eid="Id2" size="2">
      <modifiedtripleset>
        <mtriple>Mars Hill | JOINED | 1973</mtriple>
        <mtriple>[TABLECONTEXT] | [TITLE] | Schools</mtriple>
      </modifiedtripleset>
      <lex comment="WikiSQL_lily" lid="Id1">1973 was when Mars Hill joined.</lex>
      <lex comment="WikiSQL_lily" lid="Id2" />
    </entry>
  </entries>
</benchmark>
"""
MNLI_HEAD = "index\tpromptID\tpairID\tgenre\tsentence1\tsentence2\tlabel1\tgold_label\n"
GLUE = {
    "sst2": ("train.tsv", 'sentence\tlabel\nit \'s " charming \t1\n" dull\t0\n'),
    "cola": ("train.tsv", "gj04\t1\t\tThey sang.\ngj04\t0\t*\tSang they \"the.\n"),
    "mrpc": ("train.tsv", "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
                          '1\t11\t12\tHe said " yes .\tHe agreed .\n0\t13\t14\tIt fell .\tIt rose " .\n'),
    "stsb": ("train.tsv", "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
                          "0\tg\tf\t2012\t1\tn\tn\tA plane.\tAn air plane.\t5.000\n"
                          "1\tg\tf\t2012\t2\tn\tn\tA plane.\tA flute.\t0.250\n"),
    "qqp": ("train.tsv", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
                         "0\t1\t2\tWhat is \"it?\tWhat's it?\t1\n1\t3\t4\tWho?\tWhen?\t0\n"),
    "mnli": ("train.tsv", MNLI_HEAD + "0\tp\tq\tfiction\tIt rains.\tIt is wet.\tneutral\tentailment\n"
                                      "1\tp\tq\tfiction\tIt rains.\tIt is dry.\tneutral\tcontradiction\n"),
    "qnli": ("train.tsv", "index\tquestion\tsentence\tlabel\n0\tWho \"?\tAda did.\tentailment\n"
                          "1\tWho?\tIt did.\tnot_entailment\n"),
    "rte": ("train.tsv", "index\tsentence1\tsentence2\tlabel\n0\tIt rains.\tIt is wet.\tentailment\n"
                         "1\tIt rains.\tIt is \"dry.\tnot_entailment\n"),
}  # fmt: skip
"""One training file of each GLUE task, a stray quote in each."""
SUBSET = {
    "0": {"text_a": "It rains.", "text_b": "It is wet.", "label": "entailment"},
    "1": {"text_a": "It rains.", "text_b": "It is dry.", "label": "contradiction"},
}
TABLES = [
    {"id": "1-1", "header": ["Player", "No.", "School \"A\"", ""], "types": ["text", "real", "text", "text"],
     "rows": [["Ann", 7, "X", ""]], "name": "t"},
    {"id": "1-2", "header": ["Name", "Name"], "types": ["text", "text"], "rows": []},
]  # fmt: skip
QUESTIONS = [
    {"phase": 1, "table_id": "1-1", "question": "Who has no. 7?",
     "sql": {"sel": 0, "agg": 0, "conds": [[1, 0, 7]]}},
    {"phase": 1, "table_id": "1-1", "question": "How many of X's have more than 6.5?",
     "sql": {"sel": 3, "agg": 3, "conds": [[2, 0, "X's AND \"Y\""], [1, 1, 6.5]]}},
    {"phase": 2, "table_id": "1-2", "question": "The last name?", "sql": {"sel": 1, "agg": 1, "conds": []}},
]  # fmt: skip
TEXT2SQL: list[dict[str, Any]] = [
    {
        "query-split": "N/A",
        "sentences": [
            {"original": "Founded when is Erskine?", "question-split": "train", "table-id": "1-1",
             "text": "Founded when is var0 ?", "variables": {"var0": "Erskine"}},
            {"original": "When was Union founded?", "question-split": "test", "table-id": "1-2",
             "text": "When was var0 founded ?", "variables": {"var0": "Union"}},
        ],
        "sql": ['SELECT TABLEalias0.FOUNDED_FIELD FROM TABLE AS TABLEalias0 WHERE '
                'TABLEalias0.THE_SCHOOL_FIELD = "var0" ;'],
        "sql-original": ["SELECT  col2 FROM table WHERE col0 = Erskine"],
        "variables": [{"example": "Erskine", "location": "both", "name": "var0", "type": "unknown"}],
    },
    {
        "query-split": "N/A",
        "sentences": [
            {"original": "How many at 1340 = 4,397feet?", "question-split": "dev", "table-id": "1-1",
             "text": "How many at var0 = var1 ?", "variables": {"var0": "1340"}},
        ],
        "sql": ['SELECT COUNT NO._FIELD FROM table WHERE THE_SCHOOL_FIELD = var0 = "var1" AND FOUNDED_FIELD > var2 ;'],
        "sql-original": ["SELECT COUNT col1 FROM table WHERE col0 = 1340 = 4,397feet AND col2 > 5"],
        "variables": [{"example": "1340", "location": "both", "name": "var0", "type": "unknown"},
                      {"example": "4,397feet", "location": "both", "name": "var1", "type": "unknown"},
                      {"example": "5", "location": "sql-only", "name": "var2", "type": "unknown"}],
    },
]  # fmt: skip
SAMSUM = [
    {"id": "13818513", "summary": "Amanda baked cookies.", "dialogue": "Amanda: I baked cookies.\r\nJerry: Sure!"},
    {"id": "13728867", "summary": "Olivia votes.", "dialogue": "Olivia: Who?\nOliver: Me \n\nOlivia: Great"},
]


def put(folder: Path, name: str, content: str | bytes | list[Any] | dict[str, Any]) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list | dict):
        content = json.dumps(content, indent=1)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def glue(folder: Path, name: str, split: str = "train") -> Path:
    file, content = GLUE[name]
    return put(folder, file.replace("train", split), content)


def wikisql(folder: Path, split: str = "train") -> None:
    put(folder, f"{split}.jsonl", jsonl(QUESTIONS))
    put(folder, f"{split}.tables.jsonl", jsonl(TABLES))


def packed(archive: Path, folder: Path, root: str) -> Path:
    with tarfile.open(archive, "w:bz2" if archive.name.endswith("bz2") else "w:gz") as tar:
        tar.add(folder, arcname=root)
    return archive
