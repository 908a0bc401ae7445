qspec 1

# Rounding to nearest at W4A16, groups of 128, symmetric: the floor under GPTQ and AWQ.
extends "base/setup.qs"

recipe rtn_w4a16 {
}

scheme w4a16 {
  weights     int4 per group 128 symmetric
  activations none
}

layers blocks[*].* use w4a16

apply rtn() on blocks[*].*
