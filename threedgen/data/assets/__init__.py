"""User assets as training data: meshes with captions are rendered, and the views are stored in shards."""
