"""Pretrain the demo's base: a Llama-shaped model of under a million parameters on the generated corpus.

One command, one thread, about 25 minutes:
    python demo/pretrain.py
"""

from __future__ import annotations

import argparse
import math
import os
import random
import sys
import time
from itertools import islice
from pathlib import Path

import torch
from grammar import RULES
from make_corpus import Scene, documents
from make_tokenizer import CONTEXT, save_tokenizer, train_tokenizer
from muon import Muon
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
SEED = 20261124
# Far from the training seed, so that no document of one stream is expected in the other.
HELD_OUT_SEED = SEED + 10_000
BATCH = 8
WARMUP = 30


def fresh_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Build the model with random weights.

    Args:
        tokenizer: gives the vocabulary size and the special tokens.

    Returns:
        A float32 model with a tied head.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=288,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.04,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


class Packed:
    """Endless blocks of tokens, documents end to end, each between ``<bos>`` and ``<eos>``.

    Args:
        tokenizer: the base's tokenizer.
        seed: seed of the documents.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self.tokenizer = tokenizer
        self.stream = documents(seed)
        self.rest: list[int] = []

    def batch(self, rows: int) -> Tensor:
        """Take the next block.

        Args:
            rows: sequences in the block.

        Returns:
            int64 tokens of shape (rows, CONTEXT + 1); the last token of a row is only a label.
        """
        need = rows * (CONTEXT + 1)
        while len(self.rest) < need:
            texts = list(islice(self.stream, 64))
            for ids in self.tokenizer(texts)["input_ids"]:
                self.rest += [*ids, self.tokenizer.eos_token_id]
        block, self.rest = self.rest[:need], self.rest[need:]
        return torch.tensor(block).view(rows, CONTEXT + 1)


def block_loss(model: LlamaForCausalLM, block: Tensor) -> Tensor:
    """Mean negative log-likelihood of a block.

    Args:
        model: the model.
        block: int64 tokens, shape (rows, CONTEXT + 1).

    Returns:
        Scalar loss in nats per token.
    """
    logits = model(input_ids=block[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), block[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, blocks: int = 4) -> float:
    """Measure the loss on documents that training never draws.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        blocks: blocks of 16 sequences.

    Returns:
        Loss in nats per token.
    """
    stream = Packed(tokenizer, HELD_OUT_SEED)
    return sum(block_loss(model, stream.batch(16)).item() for _ in range(blocks)) / blocks


@torch.no_grad()
def copy_rate(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int = 32) -> float:
    """Measure copying: of the tokens of a list said for the second time, the share that comes first in probability.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        count: lists read.

    Returns:
        Share between 0 and 1.
    """
    rng, hits, total = random.Random(HELD_OUT_SEED), 0, 0
    rules = [rule for rule in RULES["rollcall"] if rule.startswith("read and repeat. ")]
    for _ in range(count):
        words = Scene(rng).expand(rng.choice(rules)).removeprefix("read and repeat. ")
        once = words[: len(words) // 2 + 1]
        ids = tokenizer(f"Read and repeat. {words}", return_tensors="pt")["input_ids"]
        start = tokenizer(f"Read and repeat. {once.strip()}", return_tensors="pt")["input_ids"].shape[1]
        guesses = model(input_ids=ids).logits[0, start - 1 : -1].argmax(-1)
        hits += int((guesses == ids[0, start:]).sum())
        total += len(guesses)
    return hits / total


def rate_at(step: int, steps: int) -> float:
    """Share of the peak learning rate: a linear warm-up over WARMUP steps, then a cosine to a fiftieth."""
    done = max(0.0, (step - WARMUP) / max(1, steps - WARMUP))
    return min((step + 1) / WARMUP, 0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)


def optimizers_for(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms."""
    inside = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    chosen = {id(weight) for weight in inside}
    others = [weight for weight in model.parameters() if id(weight) not in chosen]
    return [Muon(inside, lr=0.02), torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.97), weight_decay=0.01)]


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int) -> None:
    """Run the pretraining and print a line every 100 steps.

    Args:
        model: trained in place.
        tokenizer: its tokenizer.
        steps: optimizer steps of BATCH sequences each.
    """
    optimizers, stream, start, window = optimizers_for(model), Packed(tokenizer, SEED), time.monotonic(), []
    schedules = [torch.optim.lr_scheduler.LambdaLR(each, lambda step: rate_at(step, steps)) for each in optimizers]
    for step in range(steps):
        loss = block_loss(model, stream.batch(BATCH))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
        window.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == steps:
            mean, window = sum(window) / len(window), []
            copied = copy_rate(model, tokenizer)
            report(f"step {step + 1}/{steps}  loss {mean:.4f}  copied {copied:.3f}  {time.monotonic() - start:.0f} s")


def report(line: str) -> None:
    """Write a line at once, so that a log file can be followed."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Train tokenizer and model, measure them and write the directory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3300, help="optimizer steps")
    parser.add_argument("--out", type=Path, default=HERE / "base", help="directory to write")
    options = parser.parse_args()
    # One thread: sums are then made in one order, and the run leaves the machine usable.
    torch.set_num_threads(1)
    os.nice(5)
    torch.manual_seed(SEED)
    tokenizer = train_tokenizer(SEED + 1, 30_000)
    model = fresh_model(tokenizer)
    report(f"{sum(weight.numel() for weight in model.parameters())} parameters, vocabulary {len(tokenizer)}")
    train(model, tokenizer, options.steps)
    model.eval()
    loss, copied = held_out_loss(model, tokenizer), copy_rate(model, tokenizer, 200)
    report(f"held-out loss {loss:.4f}, copied {copied:.3f}")
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(options.out)
    save_tokenizer(tokenizer, options.out)


if __name__ == "__main__":
    main()
