"""The packaging system's graph: raw_session → normalized_video → clips → shards → adapter → evaluation → bento."""
