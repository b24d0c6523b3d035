"""`retoken bench decode`: what token-indexed parameters cost a generating model, wherever their rows live."""
