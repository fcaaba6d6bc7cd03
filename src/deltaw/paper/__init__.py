"""The paper: models, metrics, decoding, analyses, tables and the report of arXiv:2106.09685."""
