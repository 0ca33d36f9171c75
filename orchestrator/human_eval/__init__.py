"""Compare two arms by human judgement, with blinded sheets."""
