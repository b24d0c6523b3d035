"""Scaling laws of token-indexed parameters (Sec. 3.4): numpy and scipy on plain arrays, no torch.

`naive` has the paper's equations one by one. `runs` reads a table of runs, `fit` fits a law of `laws` with a
gain of `gamma` for each variant, `bootstrap` redraws it, `identify` says what it cannot tell, `heldout`
compares forms, `isocompute` is the parabola beside it. `model` is a fit to be carried away,
`predict` asks it. `published` has the paper's numbers.
"""
