"""Writers and validators of asset files."""
