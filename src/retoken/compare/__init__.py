"""The main job: one backbone and its variants under one recipe, over seeds, with an honest account."""
