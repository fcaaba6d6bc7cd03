"""The paper's claims, each held against our records: what holds at this scale, and what does not."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from deltaw.paper.reproduce.e2e import PREFIXES, prefix_row
from deltaw.paper.reproduce.glue import FEW, FROM_MNLI, LONG, TASKS
from deltaw.paper.reproduce.records import Record
from deltaw.paper.reproduce.row import TIMES

__all__ = ["CLAIMS", "claims"]

Rows = Mapping[str, list[Record]]
Verdict = tuple[float, str]
"""How far a claim holds, 0 to 1, and the figures."""


def value(rows: Rows, row: str, name: str, over: Callable[[Iterable[float]], float] = statistics.fmean) -> float:
    """A value over a row's seeds.

    Args:
        rows: the records by row.
        row: which.
        name: of the value.
        over: what is taken over the seeds; the paper has the median for GLUE and the mean for texts.

    Returns:
        The value.

    Raises:
        KeyError: if there is no such record or value.
    """
    return over(record.values[name] for record in rows[row])


def _on_par(rows: Rows) -> Verdict:
    lora, full = (value(rows, f"e2e/{row}", "BLEU") for row in ("lora-qv-r4", "full"))
    share = value(rows, "e2e/lora-qv-r4", "parameters") / value(rows, "e2e/full", "parameters")
    loss = [value(rows, f"e2e/{row}", "validation loss") for row in ("lora-qv-r4", "full")]
    text = f"BLEU {100 * lora:.1f} against {100 * full:.1f}, validation loss {loss[0]:.3f} against {loss[1]:.3f}"
    text += f", with {share:.2%} of the values"
    if "e2e/lora-qv-r64" in rows:
        large, count = (value(rows, "e2e/lora-qv-r64", name) for name in ("BLEU", "parameters"))
        text += f"; at r=64 {100 * large:.1f} with {count / value(rows, 'e2e/full', 'parameters'):.1%}"
    judged = [lora >= full - 0.005]
    if "e2e/lora-qv-r4-long" in rows:
        lora, full = (value(rows, f"e2e/{row}-long", "BLEU") for row in ("lora-qv-r4", "full"))
        judged.append(lora >= full - 0.005)
        text += f"; after {TIMES} times the steps {100 * lora:.1f} against {100 * full:.1f}"
    return statistics.fmean(judged), text


def _small_ranks(rows: Rows) -> Verdict:
    ranks = [rank for rank in (1, 2, 4, 8, 64) if rank in (4, 64) or f"e2e/lora-qv-r{rank}" in rows]
    scores = {rank: value(rows, f"e2e/lora-qv-r{rank}", "BLEU") for rank in ranks}
    text = ", ".join(f"r={rank} {100 * score:.1f}" for rank, score in scores.items())
    small = max(score for rank, score in scores.items() if rank <= 4)
    return small >= max(scores.values()) - 0.01, f"BLEU {text}"


def _prefix(rows: Rows) -> Verdict:
    names = ("prefix-embedding", "prefix-layer", "lora-qv-r4")
    embed, layer, lora = (value(rows, f"e2e/{name}", "BLEU") for name in names)
    text = f"BLEU {100 * embed:.1f} (embedding), {100 * layer:.1f} (layer), LoRA {100 * lora:.1f}"
    return lora > max(embed, layer), text


def _adapters(rows: Rows) -> Verdict:
    names = ("adapter-h", "adapter-l", "lora-qv-r4")
    first, second, lora = (value(rows, f"e2e/{name}", "BLEU") for name in names)
    counts = [int(value(rows, f"e2e/{name}", "parameters")) for name in names]
    text = ", ".join(
        f"{label} {100 * score:.1f} ({count:,} values)"
        for label, score, count in zip(("H", "L", "LoRA"), (first, second, lora), counts, strict=True)
    )
    return lora >= max(first, second) - 0.005, f"BLEU {text}"


def _saturates(rows: Rows) -> Verdict:
    """By the longest prefix, which gains less than half a point of BLEU on the best of the shorter ones."""
    judged, texts = [], []
    for method, grid in PREFIXES.items():
        scores = {
            f"{before}+{behind}": value(rows, prefix_row(method, before, behind), "BLEU") for before, behind in grid
        }
        *shorter, longest = scores.values()
        judged.append(longest < max(shorter) + 0.005)
        texts.append(f"{method}: " + ", ".join(f"{lengths} {100 * score:.1f}" for lengths, score in scores.items()))
    return statistics.fmean(judged), f"BLEU by special tokens, {'; '.join(texts)}"


def _with_prefix(rows: Rows) -> Verdict:
    alone, embed, layer = (
        value(rows, f"e2e/{name}", "BLEU") for name in ("lora-qv-r8", "lora-prefix-embedding", "lora-prefix-layer")
    )
    text = f"BLEU LoRA {100 * alone:.1f}, LoRA+PE {100 * embed:.1f}, LoRA+PL {100 * layer:.1f}"
    return statistics.fmean((embed > alone, layer <= alone)), text


def _more_matrices(rows: Rows) -> Verdict:
    """By BLEU and by the validation loss; the better of q,v and q,k,v,o against the best single one."""
    names = ("q-r6", "k-r10", "v-r10", "o-r6", "qk-r4", "qv-r4", "qkvo-r2")
    measures = ("BLEU", "validation loss", "parameters")
    scores, losses, counts = ({name: value(rows, f"e2e/lora-{name}", of) for name in names} for of in measures)
    text = ", ".join(f"{name.replace('-r', ' r=')} {100 * scores[name]:.1f} ({losses[name]:.3f})" for name in names)
    least_and_most = sorted({min(counts.values()), max(counts.values())})
    text += f", with {' to '.join(f'{count:,.0f}' for count in least_and_most)} values"
    several, single = ("qv-r4", "qkvo-r2"), names[:4]
    by_score = max(scores[name] for name in several) >= max(scores[name] for name in single)
    by_loss = min(losses[name] for name in several) <= min(losses[name] for name in single)
    return statistics.fmean((by_score, by_loss)), f"BLEU (loss) {text}"


def _glue(rows: Rows) -> Verdict:
    """By the share of the pairs where LoRA is at most one point behind; of tasks that full fine-tuning learned."""
    kinds = (
        (TASKS, "lora", "full", ""),
        (TASKS, "lora-pooler", "full", "; with the pooler trained too "),
        (LONG, "lora-long", "full-long", f"; after {TIMES} times the steps "),
    )
    on_par, text = [], ""
    for tasks, lora, full, when in kinds:
        pairs = []
        for task in (task for task in tasks if f"glue/{task.name}-{lora}" in rows):
            ours, whole, before = (
                value(rows, f"glue/{task.name}-{key}", of, statistics.median)
                for key, of in ((lora, task.title), (full, task.title), (full, "before"))
            )
            on_par += [ours >= whole - 0.01] if whole > before else []
            pairs.append(
                f"{task.title} {100 * ours:.1f} / {100 * whole:.1f}" + ("" if whole > before else " (not learned)")
            )
        text += when + ", ".join(pairs) if pairs else ""
    if not text:
        raise KeyError("glue/sst2-lora")
    share = f"within a point or better in {sum(on_par)} of {len(on_par)}"
    return statistics.fmean(on_par or [False]), f"{share}; LoRA / FT: {text}"


def _merged(rows: Rows) -> Verdict:
    """By a small model in many settings and a larger one in one: arithmetic hides on the larger what adapters add."""
    judged, texts = [], []
    for row in ("latency/grid", "latency/gpt2-medium"):
        record = rows[row][0]
        found: dict[str, list[float]] = {}
        for line in record.sheet["rows"]:
            found.setdefault(str(line["method"]), []).append(float(line["ratio"]))
        ratios = {name: statistics.median(values) for name, values in found.items() if name != "base"}
        others = [ratio for name, ratio in ratios.items() if name.startswith(("Adapter", "Pre"))]
        merged = ratios["LoRA merged"]
        judged.append(abs(merged - 1) < 0.05 and min(others) > max(1.02, merged))
        texts.append(f"{record.on}: {', '.join(f'{name} {ratio:.3f}' for name, ratio in ratios.items())}")
    return statistics.fmean(judged), f"time over the base's, medians: {'; '.join(texts)}"


def _control(rows: Rows) -> Verdict:
    found = rows["subspace/released"][0].values
    text = f"mean phi with the closest matrix {found['phi']:.3f}, of random ones {found['random']:.4f}"
    return abs(found["random"] - found["rank / width"]) < 0.005, f"{text}, rank / width {found['rank / width']:.4f}"


def _from_mnli(rows: Rows) -> Verdict:
    better, text = [], []
    for task in FROM_MNLI:
        own, started = (
            value(rows, f"glue/{task.name}-{key}", task.title, statistics.median) for key in ("lora", "lora-from-mnli")
        )
        better.append(started > own)
        text.append(f"{task.title} {100 * own:.1f} / {100 * started:.1f}")
    return statistics.fmean(better), f"from nothing / from MNLI: {', '.join(text)}"


def _few(rows: Rows) -> Verdict:
    """Comparable: at most one point behind. Counted over the samples, against full fine-tuning and both prefixes."""
    ahead, texts = [], []
    for size, task in FEW.items():
        scores = {
            title: value(rows, f"low-data/{task.name}-{key}", task.title)
            for key, title in (("lora", "LoRA"), ("full", "FT"), *((method, method) for method in PREFIXES))
        }
        lora = scores["LoRA"]
        ahead += [lora > scores["FT"] - (0 if size == "100" else 0.01), *(lora > scores[name] for name in PREFIXES)]
        texts.append(f"{task.rows:,}: " + ", ".join(f"{title} {100 * score:.1f}" for title, score in scores.items()))
    return statistics.fmean(ahead), f"accuracy on SST-2 by examples, {'; '.join(texts)}"


CLAIMS: tuple[tuple[str, Callable[[Rows], Verdict]], ...] = (
    ("LoRA is on par with full fine-tuning or better, with about 1% of the values (Table 3)", _on_par),
    ("A small rank suffices (Tables 6 and 18)", _small_ranks),
    ("LoRA is better than prefixes (Tables 3 and 4)", _prefix),
    ("Prefixes saturate: more special tokens do not help in the end (Figure 2)", _saturates),
    ("LoRA gains from trained prefix embeddings, and not from prefix layers (Table 15, appendix E)", _with_prefix),
    ("LoRA is on par with adapters or better (Table 3)", _adapters),
    ("At one budget, several matrices of a small rank beat one of a large rank (Table 5)", _more_matrices),
    ("LoRA is on par with full fine-tuning on GLUE (Table 2)", _glue),
    ("Merged, LoRA adds no latency; adapters do (Table 1)", _merged),
    ("Random directions overlap by rank / width only (Figure 4)", _control),
    ("MRPC, RTE and STS-B gain from the MNLI adapter (section 5.1)", _from_mnli),
    (
        "LoRA is ahead of full fine-tuning with 100 examples and comparable with 1,000; prefixes are behind (Table 16)",
        _few,
    ),
)


def claims(rows: Rows) -> Sequence[tuple[str, str, str]]:
    """Judge every claim.

    Args:
        rows: the records by row.

    Returns:
        (claim, ``holds``, ``holds in part``, ``does not hold`` or ``not run``, the figures).
    """
    found = []
    for text, judge in CLAIMS:
        try:
            holds, figures = judge(rows)
        except KeyError as error:
            found.append((text, "not run", f"no record of {error.args[0]}"))
        else:
            word = "holds" if holds == 1 else "holds in part" if holds else "does not hold"
            found.append((text, word, figures))
    return found
