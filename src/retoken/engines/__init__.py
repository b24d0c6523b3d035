"""Serving engines that attached models run in. Importing this imports none of them."""
