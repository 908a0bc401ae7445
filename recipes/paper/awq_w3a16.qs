qspec 1

# AWQ at W3A16, groups of 128, symmetric: scales, then clips, then rounding to nearest.
extends "base/setup.qs"

recipe awq_w3a16 {
}

scheme w3a16 {
  weights     int3 per group 128 symmetric
  activations none
}

layers blocks[*].* use w3a16

apply awq() on blocks[*].*
apply rtn() on blocks[*].*
