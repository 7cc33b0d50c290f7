"""Do the class heatmaps of a frozen CLIP localise objects in aerial images, and what holds localisation back?"""
