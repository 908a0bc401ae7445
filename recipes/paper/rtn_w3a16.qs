qspec 1

# Rounding to nearest at W3A16, groups of 128, symmetric: the floor under GPTQ and AWQ.
extends "base/setup.qs"

recipe rtn_w3a16 {
}

scheme w3a16 {
  weights     int3 per group 128 symmetric
  activations none
}

layers blocks[*].* use w3a16

apply rtn() on blocks[*].*
