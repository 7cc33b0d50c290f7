"""The embedded default: procedural aerial scenes, and the script that trained the small CLIP on them."""
