"""Pipelines to copy, and the data they run on."""
