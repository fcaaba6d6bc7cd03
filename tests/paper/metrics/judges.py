"""The programs that e2e-metrics scores with, run as judges: METEOR 1.5, the Stanford tokenizer, CIDEr and ROUGE-L.

All are in the package pycocoevalcap (104 MB, no dependency of this one); METEOR and the tokenizer need java. Run as a
script, this file writes ``judges_golden.json``: sentences of our own with what the programs make of them.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import importlib.util
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).with_name("judges_golden.json")
STAGES = ("exact stem", "exact stem synonym", "exact stem paraphrase", "exact stem synonym paraphrase")
WEIGHTS = {"exact": "1.0", "stem": "0.6", "synonym": "0.8", "paraphrase": "0.6"}
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

Case = tuple[str, list[str]]


def absent() -> str:
    """Say what is missing to run the judges; nothing if they can be run."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        return "pycocoevalcap is not installed"
    return "" if shutil.which("java") else "java is not on PATH"


def home() -> Path:
    spec = importlib.util.find_spec("pycocoevalcap")
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))


def write_tables(tables: dict[str, list[str]], place: Path) -> None:
    """Write tables in METEOR's form: the synonyms' three files, of which it opens two, and the paraphrases."""
    for name in ("synsets", "exceptions", "relations"):
        (place / f"english.{name}").write_text("".join(f"{line}\n" for line in tables.get(name, [])), encoding="utf-8")
    text = "".join(f"{line}\n" for line in tables["paraphrases"])
    (place / "paraphrase-en.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


def meteor(cases: Sequence[Case], stages: str, tables: Path | None = None) -> tuple[list[float], float]:
    """The score of every segment and of all: as e2e-metrics asks for them, but with the stages named.

    Their weights are given too: the program gives its own by place, and so 0.8 to paraphrases where synonyms are out.
    """
    jar = home() / "meteor" / "meteor-1.5.jar"
    command = ["java", "-Xmx3G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm", "-m", stages]
    command += ["-w", " ".join(WEIGHTS[stage] for stage in stages.split())]
    if tables is not None:
        command += ["-d", str(tables), "-a", str(tables / "paraphrase-en.gz")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8") as program:
        assert program.stdin is not None and program.stdout is not None

        def ask(*parts: str) -> str:
            program.stdin.write(" ||| ".join(parts) + "\n")
            program.stdin.flush()
            return program.stdout.readline().strip()

        statistics = [ask("SCORE", *references, hypothesis) for hypothesis, references in cases]
        scores = [float(ask("EVAL", *statistics)), *(float(program.stdout.readline()) for _ in cases)]
        program.stdin.close()
    return scores[:-1], scores[-1]


def stanford(texts: Sequence[str]) -> list[list[str]]:
    """The tokens that the COCO scripts keep."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".txt") as file:
        file.write("\n".join(texts) + "\n")
        file.flush()
        jar = next((home() / "tokenizer").glob("stanford-corenlp-*.jar"))
        command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
        found = subprocess.run([*command, file.name], capture_output=True, encoding="utf-8", check=True).stdout
    lines = found.split("\n")[: len(texts)]
    return [[token for token in line.split() if token not in PUNCTUATION] for line in lines]


def coco(cases: Sequence[tuple[list[str], list[list[str]]]]) -> dict[str, tuple[list[float], float]]:
    """CIDEr and ROUGE-L of tokens."""
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    references = {i: [" ".join(tokens) for tokens in group] for i, (_, group) in enumerate(cases)}
    hypotheses = {i: [" ".join(tokens)] for i, (tokens, _) in enumerate(cases)}
    scores = {
        name: judge().compute_score(references, hypotheses) for name, judge in (("cider", Cider), ("rouge_l", Rouge))
    }
    return {name: ([float(one) for one in each], float(value)) for name, (value, each) in scores.items()}


def judged(
    cases: Sequence[Case], tables: dict[str, list[str]] | None, stages: Sequence[str], others: Sequence[str] = ()
) -> dict[str, Any]:
    """What the judges say of segments.

    Args:
        cases: hypotheses with their references.
        tables: of synonyms and of paraphrases; none for the program's own.
        stages: sets of METEOR's stages.
        others: texts that are only split.

    Returns:
        Segments and corpus by name (``meteor exact stem``, ``meteor ptb``, ``cider``, ``rouge_l``), and the tokens.
    """
    texts = [text for hypothesis, references in cases for text in (hypothesis, *references)]
    tokens = dict(zip(texts, stanford(texts), strict=True))
    found: dict[str, Any] = {"tokens": tokens | dict(zip(others, stanford(others), strict=True))}
    with tempfile.TemporaryDirectory() as place:
        if tables is not None:
            write_tables(tables, Path(place))
        for one in stages:
            found[f"meteor {one}"] = meteor(cases, one, None if tables is None else Path(place))
    split = [(" ".join(tokens[text]), [" ".join(tokens[one]) for one in group]) for text, group in cases]
    found["meteor ptb"] = meteor(split, "exact stem")
    return found | coco([(tokens[text], [tokens[one] for one in group]) for text, group in cases])


def scrambled(groups: Sequence[Sequence[str]], seed: int) -> list[Case]:
    """Make hypotheses of references: one of each group, whole, cut, reordered or with words left out."""
    chance = random.Random(seed)
    cases = []
    for group in groups:
        held = chance.randrange(len(group))
        words = group[held].split()
        way = chance.randrange(5)
        if way == 1:
            chance.shuffle(words)
        elif way == 2:
            words = words[: max(1, len(words) * 2 // 3)]
        elif way == 3:
            words = [word for word in words if chance.random() > 0.25] or words[:1]
        elif way == 4:
            at = chance.randrange(len(words))
            words = words[at:] + words[:at]
        references = [text for i, text in enumerate(group) if i != held] or list(group)
        cases.append((" ".join(words), references))
    return cases


def main() -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    cases = [(case["hypothesis"], case["references"]) for case in golden["cases"]]
    golden["programs"] = {
        "package": f"pycocoevalcap {importlib.metadata.version('pycocoevalcap')}",
        "meteor": "meteor-1.5.jar - - -stdio -l en -norm -m STAGES -w WEIGHTS -d TABLES -a TABLES/paraphrase-en.gz",
        "tokens": "stanford-corenlp-3.4.1.jar PTBTokenizer -preserveLines -lowerCase, punctuation removed",
    }
    golden["judged"] = judged(cases, golden["tables"], STAGES, golden["texts"])
    GOLDEN.write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(absent() or main())
