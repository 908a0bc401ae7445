qspec 1

# SmoothQuant at W8A8, alpha 0.5.
extends "base/setup.qs"

recipe smoothquant_w8a8 {
}

scheme w8a8 {
  weights     int8 per channel symmetric
  activations int8 per token   symmetric
}

layers blocks[*].* use w8a8

apply smooth(alpha = 0.5) on blocks[*].*
apply rtn()               on blocks[*].*
