# The embedded models from nothing, in order, by the configs of this version. Hours of each model: README.md.
# `make weights` prints this file, `sh weights/recipe.sh` runs it. A command that was interrupted continues.
# The model card (README.md) says how the embedded weights were trained: in part by earlier configs.
set -e
OUT=outputs/weights

# measuring models and the foreground mask
python launch.py --config train-toybox-probe out=$OUT/probe
python launch.py --config train-toybox-sides start=$OUT/probe/probe out=$OUT/sides
python launch.py --config train-toybox-identity out=$OUT/identity
python launch.py --config train-toybox-matte out=$OUT/matte

# 2D model, then the multi-view prior
python launch.py --config train-toybox-base out=$OUT/base
python launch.py --config train-toybox-base-rooms start=$OUT/base/base out=$OUT/rooms
python launch.py --config train-toybox-prior start=$OUT/base/base out=$OUT/prior
python launch.py --config train-toybox-views start=$OUT/prior/prior out=$OUT/views

# layers between views for the 2D model
python launch.py --config train-mvdiffusion-toybox start=$OUT/rooms/base out=$OUT/panorama
python launch.py --config train-mvdiffusion-toybox start=$OUT/rooms/base variant=outpaint blocks=$OUT/panorama/blocks.safetensors out=$OUT/outpaint
python launch.py --config train-mvdiffusion-toybox start=$OUT/rooms/base variant=depth scenes.name=toy-paths blocks=$OUT/panorama/blocks.safetensors out=$OUT/depth
python launch.py --config train-mvadapter-toybox start=$OUT/rooms/base out=$OUT/rays
python launch.py --config train-mvadapter-geometry-toybox start=$OUT/rooms/base out=$OUT/geometry

# novel views
python launch.py --config train-threedim-toybox out=$OUT/threedim
python launch.py --config train-threedim-toybox model.network.architecture=concat out=$OUT/threedim-concat
