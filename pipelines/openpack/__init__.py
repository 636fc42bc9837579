"""The packaging system: from OpenPack sessions to an adapter and its answers, one module a stage."""
