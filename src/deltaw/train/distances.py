"""What attention over distances keeps of a step for its backward pass: DeBERTa's, as transformers writes it.

Beside the scores of contents with contents there are those of contents with distances and of distances with contents
(He et al. 2021, arXiv:2006.03654, eq. 2). Legend as in ``deltaw.train.memory``, and S distances: twice the number of
buckets. No kernel fuses this attention, so that a block keeps

- queries, scaled keys and values, 3 e N h D;
- for each of the two kinds, the distances' vectors for each row, e (rows) S h D; the scores of all distances, of which
  those of the tokens' own are picked, e N h S; and where they were picked, 8 length^2;
- a mask, (rows) length^2, and the probabilities, e N h length, three times with dropout of attention.

Queries' and keys' layers make the distances' vectors too, where they are shared. One that is trained keeps e S r of
the distances besides, their vectors that it reads, e S d, and for queries the keys once more, e N h D.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from deltaw.train.kept import Kept

__all__ = ["Distances", "distances_of"]


@dataclass(frozen=True, kw_only=True)
class Distances:
    """The sizes of one model's attention over distances.

    Args:
        count: S.
        width: d.
        heads: h.
        all_heads: h D.
        keys: name of the layer that makes the distances' keys, empty where contents meet no distances.
        queries: name of the layer that makes their queries, empty where distances meet no contents.
        dropped: whether probabilities are dropped.
        drawn: whether each block drops distances anew.
    """

    count: int
    width: int
    heads: int
    all_heads: int
    keys: str
    queries: str
    dropped: bool
    drawn: bool

    def attention(self, rows: int, length: int, e: int) -> int:
        """Bytes one block's attention keeps where nothing is trained in it.

        Args:
            rows: of the batch.
            length: tokens of a row.
            e: bytes of one number.

        Returns:
            Bytes.
        """
        tokens = rows * length
        kind = e * self.count * (rows * self.all_heads + tokens * self.heads) + 8 * length**2
        kinds = bool(self.keys) + bool(self.queries)
        scores = rows * length**2 + (3 if self.dropped else 1) * e * tokens * self.heads * length
        return 3 * e * tokens * self.all_heads + kinds * kind + scores

    def apart(self, path: str) -> bool:
        """Whether a layer reads distances alone, and no tokens.

        Args:
            path: of the layer.

        Returns:
            The answer.
        """
        return _name(path).startswith("pos_") and _name(path) in (self.keys, self.queries)

    def trained(self, sites: Mapping[str, Kept], tokens: int, e: int) -> int:
        """Bytes one block keeps besides for what is trained in it.

        Args:
            sites: path of each trained layer of the block -> what it keeps for a token.
            tokens: of the batch.
            e: bytes of one number.

        Returns:
            Bytes.
        """
        readers = self._readers(sites)
        numbers = self.count * sum(site.rank + site.outputs for site in readers.values())
        if self.drawn and any(site.input for site in readers.values()):
            numbers += self.count * self.width
        if any(_name(path) == self.queries for path in readers):
            numbers += tokens * self.all_heads
        return e * numbers

    def shared(self, sites: Mapping[str, Kept], everything: Collection[str], layers: int, e: int) -> int:
        """Bytes that all blocks together keep of the distances' table.

        Args:
            sites: path of each trained layer of the model -> what it keeps for a token.
            everything: paths of all that is trained.
            layers: number of blocks.
            e: bytes of one number.

        Returns:
            Bytes.
        """
        numbers = 0
        if self.drawn and any(_name(path) == "rel_embeddings" for path in everything):
            numbers = layers * self.count * self.width
        elif not self.drawn and any(site.input for site in self._readers(sites).values()):
            numbers = self.count * self.width
        return e * numbers

    def _readers(self, sites: Mapping[str, Kept]) -> dict[str, Kept]:
        names = {name for name in (self.keys, self.queries) if name}
        return {path: site for path, site in sites.items() if _name(path) in names}


def distances_of(config: Any, training: bool) -> Distances | None:
    """Read the sizes from a config.

    Args:
        config: of a transformers model.
        training: whether dropout is on.

    Returns:
        The sizes; None for models of other types.
    """
    if config.model_type != "deberta-v2":
        return None
    kinds = config.pos_att_type or () if config.relative_attention else ()
    buckets = config.position_buckets if config.position_buckets > 0 else config.max_relative_positions
    size = getattr(config, "attention_head_size", None) or config.hidden_size // config.num_attention_heads
    own = "" if getattr(config, "share_att_key", False) else "pos_"
    return Distances(
        count=2 * (buckets if buckets > 0 else config.max_position_embeddings),
        width=config.hidden_size,
        heads=config.num_attention_heads,
        all_heads=config.num_attention_heads * size,
        keys=f"{own}key_proj" if "c2p" in kinds else "",
        queries=f"{own}query_proj" if "p2c" in kinds else "",
        dropped=training and config.attention_probs_dropout_prob > 0,
        drawn=training and config.hidden_dropout_prob > 0,
    )


def _name(path: str) -> str:
    return path.rpartition(".")[2]
