"""The paper's analyses on any two adapters or runs: each gives a table (text, CSV, JSON) and a figure (PNG, SVG)."""
