qspec 1

# SmoothQuant at W4A4, alpha 0.5.
extends "base/setup.qs"

recipe smoothquant_w4a4 {
}

scheme w4a4 {
  weights     int4 per channel symmetric
  activations int4 per token   symmetric
}

# allow QS045: a cell of the paper's table, in which this collapses
layers blocks[*].* use w4a4

apply smooth(alpha = 0.5) on blocks[*].*
apply rtn()               on blocks[*].*
