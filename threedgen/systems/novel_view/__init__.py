"""Tasks `train-threedim`, which trains a novel-view model (3DiM), and `image-to-3d`, which makes an object with it."""
