"""What is computed: plain Python that imports neither Dagster nor BentoML, so that it also runs on a bare GPU machine.

`common` serves more than one system; every other package is one system, and systems never import each other.
"""
