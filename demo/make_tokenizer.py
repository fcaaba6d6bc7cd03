"""Train the base's byte-level BPE tokenizer on the generated corpus and wrap it for transformers."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from make_corpus import documents
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"
VOCABULARY = 2000
CONTEXT = 256


def train_tokenizer(seed: int, count: int) -> PreTrainedTokenizerFast:
    """Learn merges from the corpus.

    Args:
        seed: seed of the documents read.
        count: how many documents are read.

    Returns:
        A fast tokenizer that puts ``<bos>`` before a text and knows ``<eos>`` and ``<pad>``.
    """
    tokenizer = Tokenizer(models.BPE())
    # Figures stand alone: a price is then copied digit by digit, and no price is a token of its own.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(islice(documents(seed), count), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the tokenizer's files.

    Args:
        tokenizer: what ``train_tokenizer`` returned.
        folder: directory to write into; made if absent.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
