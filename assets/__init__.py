"""When things are computed: assets and their checks, a few lines each, and the commands that bring them up to date.

One package a system (`openpack`); what all systems share lies beside it. How things are computed is in `pipelines`.
"""
