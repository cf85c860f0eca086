"""Where pictures to learn from come from: procedural worlds and folders of images."""
