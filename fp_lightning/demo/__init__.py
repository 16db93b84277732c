"""The interactive editor: a web page and an API for the pipeline."""
