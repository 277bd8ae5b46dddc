"""One Pandera model per table: the only truth about columns, types, ranges and keys.

`docs/data-dictionary.md` is generated from the models, the stores' writers check with them, and the Dagster assets show
them as column schemas.
"""
