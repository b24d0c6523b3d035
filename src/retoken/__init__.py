"""Token-indexed parameters for language models: ReToken (JTok) and MoRT (JTok-M)."""
