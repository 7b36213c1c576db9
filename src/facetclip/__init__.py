"""facetclip: read product attributes off product photos with a fine-tuned CLIP."""

__version__ = "0.1.0"
