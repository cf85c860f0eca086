"""User assets as training data. Meshes with captions are rendered, and the views are stored in shards."""
