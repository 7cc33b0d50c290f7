"""The embedded default: procedural aerial scenes, and the script that trained the small CLIP on them."""

from .scenes import Scene, render_scene, scene_rng, write_scenes

__all__ = ["Scene", "render_scene", "scene_rng", "write_scenes"]
