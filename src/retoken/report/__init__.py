"""The page that shows a comparison: one self-contained HTML file."""
