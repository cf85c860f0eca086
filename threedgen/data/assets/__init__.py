"""Users' own assets as training data: a folder of meshes and captions becomes shards of rendered views."""
