qspec 1

# DuQuant at W8A8: smoothing at 0.5, then 256 rotation steps in blocks of 128, weights to nearest.
extends "base/setup.qs"

recipe duquant_w8a8 {
}

scheme w8a8 {
  weights     int8 per channel symmetric
  activations int8 per token   symmetric
}

layers blocks[*].* use w8a8

apply smooth(alpha = 0.5)                      on blocks[*].*
apply rotate_duquant(block = 128, steps = 256) on blocks[*].*
apply rtn()                                    on blocks[*].*
