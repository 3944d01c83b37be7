"""Notebooks through papermill: one of them, the runs of a grid, and the ordered book with its site."""
