"""Data: the store, what fills it (`convert`), and what reads it. Nothing is imported before it is needed."""
