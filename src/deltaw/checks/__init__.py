"""The findings of ``deltaw.check``, one generator each; ``deltaw.check.CHECKS`` is their registry."""
