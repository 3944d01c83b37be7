"""Converters: a data set in its original layout -> a folder of stores, one file a data set."""
