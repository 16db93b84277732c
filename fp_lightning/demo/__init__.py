"""The interactive editor: a web page and a service over the pipeline."""
