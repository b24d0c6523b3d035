"""A scaling study: the grid of budgets, sizes and variants, what it will cost, and its runs (Sec. 4.3)."""
