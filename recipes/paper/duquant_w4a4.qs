qspec 1

# DuQuant at W4A4: smoothing at 0.5, then 256 rotation steps in blocks of 128, weights to nearest.
extends "base/setup.qs"

recipe duquant_w4a4 {
}

scheme w4a4 {
  weights     int4 per channel symmetric clip 0.8
  activations int4 per token   symmetric clip 0.9
}

layers blocks[*].* use w4a4

apply smooth(alpha = 0.5)                      on blocks[*].*
apply rotate_duquant(block = 128, steps = 256) on blocks[*].*
apply rtn()                                    on blocks[*].*
